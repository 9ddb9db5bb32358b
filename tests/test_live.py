"""The live index against an index that is built anew after every change."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onesearch import live as live_module
from onesearch.live import LiveIndex
from onesearch.prefix import PrefixIndex

SIZES = (4, 3)


def fresh(items: dict[int, tuple[int, ...]], sizes: tuple[int, ...]) -> PrefixIndex:
    """An index of these items in the order in which they came."""
    index = PrefixIndex.build(np.array(list(items.values())), level_sizes=sizes)
    known = torch.tensor(list(items))
    return PrefixIndex(known[index.items.long()], index.code, index.child, index.below, index.widest)


def assert_same(index: PrefixIndex, expected: PrefixIndex) -> None:
    assert index.items.tolist() == expected.items.tolist()
    for name in ("code", "child", "below"):
        for mine, theirs in zip(getattr(index, name), getattr(expected, name), strict=True):
            assert mine.tolist() == theirs.tolist() and mine.dtype == theirs.dtype
    assert index.widest == expected.widest


def started(sizes: tuple[int, ...] = SIZES) -> tuple[LiveIndex, dict[int, tuple[int, ...]]]:
    codes = [(0, 0), (3, 2), (0, 0), (1, 1)]
    return LiveIndex(PrefixIndex.build(np.array(codes), level_sizes=sizes), sizes), dict(enumerate(codes))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([SIZES, (2**40, 2**30)]))
def test_any_sequence_of_changes_equals_a_fresh_build(data: st.DataObject, sizes: tuple[int, ...]) -> None:
    live, known = started(sizes)
    for version in range(2, 2 + data.draw(st.integers(0, 8))):
        there, absent = list(known), [item for item in range(30) if item not in known]
        if len(there) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.lists(st.sampled_from(there), min_size=1, max_size=len(there) - 1, unique=True))
            assert live.remove(np.array(gone)) == version
            known = {item: row for item, row in known.items() if item not in gone}
        else:
            come = data.draw(st.lists(st.sampled_from(absent), min_size=1, max_size=6, unique=True))
            rows = [tuple(data.draw(st.integers(0, min(size, 4) - 1)) for size in sizes) for _ in come]
            assert live.insert(np.array(come), np.array(rows)) == version
            known.update(zip(come, rows, strict=True))
        assert live.snapshot.version == version
        assert_same(live.snapshot.index, fresh(known, sizes))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 6), min_size=1), st.integers(0, 3)), max_size=8))
def test_changes_that_meet_in_one_snapshot_are_as_one_after_the_other(
    changes: list[tuple[bool, set[int], int]],
) -> None:
    """All wait for the same snapshot; those that are not possible in their turn are refused, the others stay."""
    live, known = started()
    waiting, possible = [], []
    for insertion, chosen, code in changes:
        items, codes = np.array(sorted(chosen), np.int32), np.full((len(chosen), 2), [code, 0])
        waiting.append(live_module._Change(items, live._packing.keys(codes) if insertion else None))
        if insertion and not chosen & known.keys():
            known.update(dict.fromkeys(sorted(chosen), (code, 0)))
            possible.append(True)
        elif not insertion and chosen < known.keys():
            known = {item: row for item, row in known.items() if item not in chosen}
            possible.append(True)
        else:
            possible.append(False)
    live._apply(waiting)
    assert [change.error is None for change in waiting] == possible
    assert [change.version for change in waiting] == [2 if one else None for one in possible]
    assert live.snapshot.version == (2 if any(possible) else 1)
    assert_same(live.snapshot.index, fresh(known, SIZES))


def test_a_snapshot_stays_as_it_was() -> None:
    live, known = started()
    before = live.snapshot
    assert before.version == 1
    live.insert(np.array([9]), np.array([[2, 2]]))
    live.remove(np.array([0, 1, 2]))
    assert_same(before.index, fresh(known, SIZES))
    assert sorted(live.snapshot.index.items.tolist()) == [3, 9] and live.snapshot.version == 3


@pytest.mark.parametrize(
    ("items", "codes", "told"),
    [
        ([5, 2], [[0, 0], [0, 0]], "item 2 is there already"),
        ([5, 5], [[0, 0], [0, 1]], "item 5 is named twice"),
        ([5, 6], [[0, 0], [0, 3]], "item 6 has code 3 at level 1: not from 0 to 2"),
        ([5, 6], [[0, 0], [-1, 0]], "item 6 has code -1 at level 0"),
        ([-1], [[0, 0]], "item -1 is not from 0"),
        ([2**31], [[0, 0]], f"item {2**31} is not from 0"),
        ([5], [[0, 0, 0]], "codes must be"),
        ([5, 6], [[0, 0]], "codes must be"),
        ([5], [[0.0, 0.0]], "integers, not float64"),
        ([5.0], [[0, 0]], "items must be"),
        (np.zeros(0, int), np.zeros((0, 2), int), "items must be"),
    ],
)
def test_an_insertion_that_cannot_be_changes_nothing(items: Any, codes: Any, told: str) -> None:
    live, known = started()
    with pytest.raises(ValueError, match=told):
        live.insert(np.array(items), np.array(codes))
    assert live.snapshot.version == 1
    assert live.insert(np.array([5, 6]), np.array([[0, 0], [3, 2]])) == 2
    assert_same(live.snapshot.index, fresh({**known, 5: (0, 0), 6: (3, 2)}, SIZES))


@pytest.mark.parametrize(
    ("items", "told"),
    [
        ([0, 7], "item 7 is not there"),
        ([1, 1], "item 1 is named twice"),
        ([0, 1, 2, 3], "at least one item"),
        ([-1], "item -1 is not from 0"),
    ],
)
def test_a_removal_that_cannot_be_changes_nothing(items: list[int], told: str) -> None:
    live, known = started()
    with pytest.raises(ValueError, match=told):
        live.remove(np.array(items))
    assert live.snapshot.version == 1
    assert live.remove(np.array([0])) == 2
    assert_same(live.snapshot.index, fresh({item: row for item, row in known.items() if item}, SIZES))


def test_level_sizes_that_do_not_fit_the_index_are_refused() -> None:
    index = PrefixIndex.build(np.array([[0, 5]]))
    with pytest.raises(ValueError, match="has code 5 at level 1"):
        LiveIndex(index, (1, 5))
    with pytest.raises(ValueError, match="1 level sizes"):
        LiveIndex(index, (1,))


def test_an_unforeseen_failure_reaches_every_writer_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live, known = started()
    waiting = [live_module._Change(np.array([item], np.int32), None) for item in (0, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(PrefixIndex, "of_sorted", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            live._apply(waiting)
    assert [str(change.error) for change in waiting] == [
        "the next snapshot could not be made: MemoryError('no room')"
    ] * 2
    assert_same(live.snapshot.index, fresh(known, SIZES))
    assert live.remove(np.array([0])) == 2


def test_nothing_is_lost_or_seen_half_done_between_threads() -> None:
    """Writers put pairs of items on sale and take some off again; readers must always see both of a pair or none."""
    sizes, writers, rounds = (16, 16, 16), 6, 40
    rng = np.random.default_rng(0)
    base = rng.integers(0, 16, (2_000, 3))
    live = LiveIndex(PrefixIndex.build(base, level_sizes=sizes), sizes)
    codes = rng.integers(0, 16, (writers, rounds, 2, 3))
    versions: list[list[int]] = [[] for _ in range(writers)]
    problems: list[str] = []
    stop = threading.Event()

    def pair(writer: int, turn: int) -> NDArray[np.int64]:
        return len(base) + 2 * (writer * rounds + turn) + np.arange(2)

    def write(writer: int) -> None:
        for turn in range(rounds):
            added = live.insert(pair(writer, turn), codes[writer, turn])
            seen = live.snapshot
            if seen.version < added or not np.isin(pair(writer, turn), seen.index.items.numpy()).all():
                problems.append(f"writer {writer} does not see what it wrote")
            versions[writer].append(added)
            if turn % 2:
                versions[writer].append(live.remove(pair(writer, turn)))

    def read() -> None:
        last = 0
        while not stop.is_set():
            seen = live.snapshot
            items = seen.index.items.numpy()
            there = np.zeros(len(base) + 2 * writers * rounds, bool)
            there[items] = True
            if seen.version < last or len(items) != there.sum() or not there[: len(base)].all():
                problems.append(f"version {seen.version} after {last}: items lost or twice")
            if (there[len(base) :: 2] != there[len(base) + 1 :: 2]).any():
                problems.append(f"version {seen.version}: one of a pair")
            everywhere = np.concatenate([base, codes.reshape(-1, 3)])
            if (seen.index.semantic_ids().numpy() != everywhere[items]).any():
                problems.append(f"version {seen.version}: an item below another semantic ID")
            last = seen.version

    readers = [threading.Thread(target=read) for _ in range(2)]
    writing = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in readers + writing:
        thread.start()
    for thread in writing:
        thread.join(60)
    stop.set()
    for thread in readers:
        thread.join(60)
    assert not any(thread.is_alive() for thread in readers + writing)
    assert not problems
    assert all(mine == sorted(set(mine)) for mine in versions), "a writer's changes come in its order"
    assert live.snapshot.version == max(map(max, versions))
    left = [pair(writer, turn) for writer in range(writers) for turn in range(0, rounds, 2)]
    assert sorted(live.snapshot.index.items.tolist()) == sorted([*range(len(base)), *np.concatenate(left).tolist()])


def test_writers_that_wait_share_one_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    live, _ = started()
    entered, go_on = threading.Event(), threading.Event()
    original = PrefixIndex.of_sorted.__func__  # type: ignore[attr-defined]

    def slow(cls: type[PrefixIndex], *rest: Any) -> PrefixIndex:
        entered.set()
        assert go_on.wait(30)
        return original(cls, *rest)

    monkeypatch.setattr(PrefixIndex, "of_sorted", classmethod(slow))
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda item=item: found.append(live.insert(np.array([item]), np.array([[1, 1]]))))
        for item in range(10, 20)
    ]
    threads[0].start()
    assert entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(live._queue) < 9:  # until all of them wait for the first
        pass
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [2] + [3] * 9
