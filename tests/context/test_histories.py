"""Histories as a sequence model reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from histories import write_histories
from made_up import write_shop

from onesearch.context.sequence import ItemContent, SequenceBuilder
from onesearch.corpus import TEST, TRAIN, VALID, Corpus, Requests, make_split, sample_requests, sources
from training.histories import Histories


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    base = tmp_path_factory.mktemp("histories")
    return sources.prepare("jsonl", base / "corpus", path=write_histories(base / "log"), on_error="mend")


def test_a_request_reads_the_latest_items_of_its_history(log: Corpus) -> None:
    split = make_split(log, "leave-one-out")
    test = sample_requests(log, split, TEST, 10**6, 0)
    items, queries, last = SequenceBuilder(log, 4, None).inputs(test)
    assert queries is None and items.shape == (60, 5)
    for row, (start, end) in enumerate(zip(test.history_start, test.history_end, strict=True)):
        assert end - start >= 6, "longer than what is read"
        first, *rest = items[row].tolist()
        assert rest == log.item[end - 4 : end].tolist() and first == log.item[end - 5]
        assert last[row] == 4
    assert (log.item[test.history_end - 1] == sample_requests(log, split, VALID, 10**6, 0).target).all()


def test_a_short_history_begins_and_ends(log: Corpus) -> None:
    builder = SequenceBuilder(log, 50, None)
    nobody = Requests.of(log, log.offsets[:2])  # the first events of two users: nothing came before
    later = Requests.of(log, log.offsets[:2] + np.array([0, 3]))
    assert builder.inputs(nobody)[0].tolist() == [[-1], [-1]]
    items, _, last = builder.inputs(later)
    start = int(log.offsets[1])
    assert items.tolist() == [[-1, -2, -2, -2], [-1, *log.item[start : start + 3].tolist()]]
    assert last.tolist() == [0, 3]
    assert builder.given(later).tolist() == [[-1, -1, -1], [start + 2, start + 1, start]]


@pytest.mark.parametrize("positions", [3, 50])
def test_each_training_event_is_learnt_once_and_no_other(log: Corpus, positions: int) -> None:
    split = make_split(log, "leave-one-out")
    histories = Histories(SequenceBuilder(log, positions, None), split)
    examples = histories.training(split)
    batch = histories.batch(examples, range(len(examples)))
    learnt = batch["labels"][batch["labels"] >= 0]
    assert len(learnt) == (split == TRAIN).sum()
    assert np.bincount(learnt, minlength=24).tolist() == np.bincount(log.item[split == TRAIN], minlength=24).tolist()
    # what stands at a place is the item before its label, which no place before has seen
    for place in range(1, batch["items"].shape[1]):
        known = batch["labels"][:, place] >= 0
        assert torch.equal(batch["items"][known, place], batch["labels"][known, place - 1])


def test_held_out_targets_are_in_no_training_batch(tmp_path: Path) -> None:
    """Other last two items of every user: the training batches are the same to the last number."""
    log = sources.prepare("jsonl", tmp_path / "a", path=write_histories(tmp_path / "log"), on_error="mend")
    split = make_split(log, "leave-one-out")

    def whole(corpus: Corpus) -> dict[str, Any]:
        histories = Histories(SequenceBuilder(corpus, 5, None), split)
        examples = histories.training(split)
        return histories.batch(examples, range(len(examples)))

    before = whole(log)
    after = whole(replace(log, item=np.where(split == TRAIN, log.item, (log.item + 7) % 24).astype(np.int32)))
    assert all(torch.equal(before[name], after[name]) for name in ("items", "labels"))


def test_queries_stand_where_they_were_asked(tmp_path: Path, word_encoder: Any) -> None:
    log = sources.prepare("jsonl", tmp_path / "corpus", path=write_shop(tmp_path / "log"))
    split = make_split(log)
    builder = SequenceBuilder(log, 6, word_encoder)
    test = sample_requests(log, split, TEST, 20, 0)
    items, queries, last = builder.inputs(test)
    assert queries is not None
    rows = torch.arange(len(test))
    expected = word_encoder.encode(test.query)
    np.testing.assert_allclose(queries[rows, last].numpy(), expected, rtol=1e-6)
    for row in range(len(test)):
        end = int(test.history_end[row])
        asked = word_encoder.encode([log.queries[log.query[end - 1]]])[0]
        np.testing.assert_allclose(queries[row, last[row] - 1].numpy(), asked, rtol=1e-6)
    histories = Histories(builder, split)
    batch = histories.batch(histories.held_out(test), range(len(test)))
    assert torch.equal(batch["items"], items)
    np.testing.assert_allclose(batch["queries"][rows, last].numpy(), expected, rtol=1e-6)
    assert batch["labels"][rows, last].tolist() == test.target.tolist()
    assert int((batch["labels"] >= 0).sum()) == len(test)


def test_content_keeps_the_directions_that_vary_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 3.0, 0.01, 0.01], np.float32)
    vectors = (rng.standard_normal((200, 4)) * spread + 1).astype(np.float32)
    content = ItemContent.fit(vectors, 2)
    assert content.vectors.shape == (200, 2)
    np.testing.assert_allclose(np.abs(content.directions[:2]), np.eye(2), atol=0.1)
    np.testing.assert_allclose(np.linalg.norm(content.vectors, axis=1), 1, rtol=1e-5)
    content.save(tmp_path)
    again = ItemContent.load(tmp_path).with_items(vectors[:3])
    np.testing.assert_allclose(again.vectors[200:], content.vectors[:3], rtol=1e-5)
