"""The benchmark of rollouts at a tiny size: both sides draw from the same distribution, and the last line is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("trl")

from benchmarks import rollout


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The benchmark takes one thread; the tests after it get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_sides_draw_what_the_model_says(tmp_path: Path) -> None:
    found = rollout.check(tmp_path)
    # the largest of two dozen frequencies is rarely more than four standard errors away
    assert set(found) == {"off_ours", "off_trl"} and max(found.values()) < 4


def test_another_distribution_would_be_seen() -> None:
    drawn = np.random.default_rng(0).choice(3, 2048, p=[0.5, 0.3, 0.2])
    assert rollout.off(drawn, np.array([0.5, 0.3, 0.2])) < 4 < rollout.off(drawn, np.array([0.4, 0.4, 0.2]))


def test_what_is_not_in_the_catalogue_is_refused() -> None:
    codes = np.array([[2, 0, 0, 1], [0, 1, 255, 0]], np.int32)
    assert rollout.places(codes, torch.tensor([[0, 1, 255, 0], [2, 0, 0, 1]])).tolist() == [1, 0]
    with pytest.raises(AssertionError, match="not in the catalogue"):
        rollout.places(codes, torch.tensor([[0, 1, 255, 1]]))


def test_the_processor_leaves_the_children_of_each_prefix() -> None:
    processor = rollout.TrieProcessor(rollout.trie_of(np.array([[4, 6], [4, 7], [5, 6]])))
    processor.begin = 2
    scores = torch.arange(16.0).view(2, 8)
    said = processor(torch.tensor([[1, 1, 4], [1, 1, 5]]), scores)
    assert torch.isfinite(said).nonzero().tolist() == [[0, 6], [0, 7], [1, 6]]
    assert said[1, 6] == scores[1, 6]


def test_the_command_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--words", "64", "--items", "200", "--prompts", "2", "--tokens", "6", "--turns", "1"]
    assert rollout.main(small) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["speedup_vs_trl"] > 0 and found["speedup_vs_trl_scored"] > 0
    assert found["tokens_ratio"] == round(8 * 9 / 30, 2)
    assert (found["items"], found["threads"]) == (200, 1)
