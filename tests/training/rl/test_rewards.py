"""Rewards of the made-up shop, and what is told of those that cannot be right."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onesearch.corpus import VALID, Corpus, Requests, make_split, sample_requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.run import Run
from onesearch.sid import SidTable
from training.rl.rewards import PATIENCE, WORTH, Known, Rewards


@pytest.fixture(scope="module")
def known(quantized_run: Path) -> Known:
    run = Run.open(quantized_run)
    return Known(run, Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid"))


def requests_of(known: Known, size: int = 5) -> Requests:
    return sample_requests(known.corpus, make_split(known.corpus), VALID, size, 0)


def always(value: Any) -> Any:
    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> Any:
        return [value] * len(prompts)

    return reward


GIVEN: dict[str, Any] = {}


def told(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward of a user's own, in TRL's signature."""
    GIVEN.update(columns, prompts=prompts, completions=completions, completion_ids=completion_ids)
    return [float(one == other) for one, other in zip(columns["item_id"], columns["target_id"], strict=True)]


def broken(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [float("nan")] * len(prompts)


def short(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [1.0]


def test_what_was_bought_is_1_and_codes_count_from_the_first_on(known: Known) -> None:
    requests = requests_of(known)
    codes = known.table.codes
    items = np.stack([requests.target, (requests.target + 1) % len(codes)], 1)
    earned = Rewards(["bought", "prefix"], [1.0, 0.5], known)(requests, items)
    np.testing.assert_array_equal(earned.each["bought"], [[1, 0]] * 5)
    for row, (target, other) in enumerate(items):
        same = 0
        while codes[target, same] == codes[other, same]:
            same += 1
        assert earned.each["prefix"][row, 1] == pytest.approx(same / codes.shape[1])
    np.testing.assert_allclose(earned.total, earned.each["bought"] + 0.5 * earned.each["prefix"], rtol=1e-6)


def test_a_place_without_an_item_earns_nothing(known: Known) -> None:
    requests = requests_of(known)
    items = np.stack([requests.target, np.full(5, -1)], 1)
    assert (Rewards(["bought", "prefix"], None, known)(requests, items).total[:, 1] == 0).all()


def test_what_was_done_with_an_item_in_the_same_search(known: Known) -> None:
    """One session bought item a with one query and item b with another: of the first query only a counts."""
    corpus = known.corpus
    kinds = np.where(np.arange(len(corpus.kind)) % 2 == 0, EVENT_KINDS.index("click"), EVENT_KINDS.index("purchase"))
    changed = replace(known, corpus=replace(corpus, kind=kinds.astype(corpus.kind.dtype)))
    rewards = Rewards(["interaction"], None, changed)
    events = np.arange(0, 60, dtype=np.int64)
    items = np.tile(np.arange(len(corpus.items)), (len(events), 1))
    found = rewards(Requests.of(corpus, events), items).total
    for event in events:
        expected = np.zeros(len(corpus.items))
        for other in range(len(corpus.user)):
            same = corpus.history_end[other] == corpus.history_end[event] and corpus.query[other] == corpus.query[event]
            if same:
                item = corpus.item[other]
                expected[item] = max(expected[item], WORTH[EVENT_KINDS[kinds[other]]])
        np.testing.assert_allclose(found[event], expected, rtol=1e-6)


def test_a_reward_of_ones_own_gets_what_trl_gives(known: Known) -> None:
    requests = requests_of(known)
    items = np.stack([requests.target, (requests.target + 1) % len(known.table.codes)], 1)
    earned = Rewards([f"{__name__}:told"], None, known)(requests, items)
    np.testing.assert_array_equal(earned.total, [[1, 0]] * 5)
    assert GIVEN["prompts"] == [query for query in requests.query for _ in range(2)]
    assert GIVEN["completions"][0] == known.table.text(int(items[0, 0]))
    assert GIVEN["completion_ids"][1] == known.table.codes[items[0, 1]].tolist()
    assert len(GIVEN["user_id"]) == len(GIVEN["event"]) == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{__name__}:broken", r"reward .*:broken: item '.*' for '.*': not a number: 'nan' \(return a finite number"),
        (f"{__name__}:short", r"10 values expected: \(1,\) \(return one number for each prompt\)"),
    ],
)
def test_what_a_reward_must_not_return(known: Known, name: str, message: str) -> None:
    requests = requests_of(known)
    with pytest.raises(UserError, match=message):
        Rewards([name], None, known)(requests, np.stack([requests.target, requests.target], 1))


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (["boughtt"], None, r"no such reward: 'boughtt' \(did you mean 'bought'\?\)"),
        (["nowhere.at.all:reward"], None, "no such reward: 'nowhere.at.all:reward'"),
        (["bought"], [1.0, 2.0], "not one weight for each reward"),
        ([], None, "no reward"),
    ],
)
def test_what_cannot_be_asked_for(known: Known, names: list[str], weights: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Rewards(names, weights, known)


def test_a_reward_that_is_always_the_same_is_told_once(known: Known, caplog: pytest.LogCaptureFixture) -> None:
    requests = requests_of(known)
    rewards = Rewards(["bought"], None, known)
    nothing = np.stack([(requests.target + 1) % len(known.table.codes)] * 2, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(PATIENCE + 5):
            rewards(requests, nothing)
    assert [record.getMessage() for record in caplog.records] == [
        f"reward bought gave {PATIENCE} batches nothing but 0: there is no signal to learn from"
    ]
