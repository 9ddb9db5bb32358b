"""A prefix index that changes while searches run: every change makes the next snapshot, a search keeps its own.

A snapshot is immutable. The next one is merged from its sorted keys and the sorted new ones, one pass over the items
and no sort of them, and takes its place by one assignment: a reader sees all of a change or nothing of it. Writers
that come while a snapshot is being made wait, and the next snapshot holds the changes of all of them (group commit), so
many small changes cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Condition
from time import sleep
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onesearch.prefix import PrefixIndex, level_sizes_of
from onesearch.sort_keys import Keys, SortKeys

_MOST_ITEMS: Final = 2**31
_GATHER: Final = 1e-3
"""Seconds that those whose change was just made have to come with the next: a snapshot costs many times that."""


@dataclass(frozen=True)
class Snapshot:
    """What a search works on from beginning to end.

    Attributes:
        version: 1 of the index that was given, more with every snapshot after it.
        index: the prefix index.
    """

    version: int
    index: PrefixIndex


@dataclass
class _Change:
    """What one call wants, and what became of it: `keys` of an insertion, None of a removal."""

    items: NDArray[np.int32]
    keys: Keys | None
    version: int | None = None
    error: BaseException | None = None


@dataclass
class _State:
    """What the next snapshot is merged from: keys and items (N,) in SID order, `present` (M,) bool by item index."""

    keys: Keys
    items: NDArray[np.int32]
    present: NDArray[np.bool_]


class LiveIndex:
    """A prefix index that takes insertions and removals from any number of threads.

    Items are known by their index in a table, 0 to 2**31 - 1; one byte is kept for each number up to the largest. An
    item that comes takes the last place among those with its semantic ID; an index that is built of the same items in
    the order in which they came is the same.
    """

    def __init__(self, index: PrefixIndex, level_sizes: Sequence[int]) -> None:
        """Begin with an index as version 1.

        Args:
            level_sizes: L numbers; codes of level l, also of the items to come, are below `level_sizes[l]`.

        Raises:
            ValueError: codes of the index are not below the level sizes.
        """
        codes = index.semantic_ids().numpy()
        self._level_sizes = level_sizes_of(codes, level_sizes)
        self._packing = SortKeys.of(self._level_sizes)
        items = index.items.numpy().astype(np.int32)
        present = np.zeros(int(items.max()) + 1, bool)
        present[items] = True
        # One attribute, so that both change at once.
        self._current = Snapshot(1, index), _State(self._packing.keys(codes), items, present)
        self._queue: list[_Change] = []
        self._writing = False
        self._written = Condition()

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot; keep it as long as a search lasts. Never waits."""
        return self._current[0]

    def insert(self, items: NDArray[np.integer], codes: NDArray[np.integer]) -> int:
        """Put items (n,) with semantic IDs (n, L) on sale.

        Returns:
            the version of the first snapshot that holds them; it is the newest, or an older one, when this returns.

        Raises:
            ValueError: no items, an item that is there already or twice, a code out of range; nothing was changed.
        """
        chosen = _indices(items)
        if codes.shape != (len(chosen), len(self._level_sizes)):
            raise ValueError(f"codes must be ({len(chosen)}, {len(self._level_sizes)}), not {codes.shape}")
        level_sizes_of(codes, self._level_sizes, chosen)
        keys = self._packing.keys(codes)
        order = np.argsort(keys, kind="stable")
        return self._commit(_Change(chosen[order], keys[order]))

    def remove(self, items: NDArray[np.integer]) -> int:
        """Take items (n,) off sale.

        Returns:
            the version of the first snapshot without them; it is the newest, or an older one, when this returns.

        Raises:
            ValueError: no items, an item that is not there or named twice, none would be left; nothing was changed.
        """
        return self._commit(_Change(_indices(items), None))

    def _commit(self, change: _Change) -> int:
        """Queue a change and wait until this thread, or one before it, has made a snapshot with it."""
        with self._written:
            self._queue.append(change)
            # Whoever finds nobody writing writes for all who wait. They wait for their change and not for a turn to
            # write, or a writer that comes again at once would be served alone, before them, every time.
            while self._writing and change.version is None and change.error is None:
                self._written.wait()
            leads = change.version is None and change.error is None
            self._writing |= leads
        if leads:
            try:
                sleep(_GATHER)
                with self._written:
                    waiting, self._queue = self._queue, []
                self._apply(waiting)
            finally:
                with self._written:
                    self._writing = False
                    self._written.notify_all()
        if change.error is not None:
            raise change.error
        assert change.version is not None
        return change.version

    def _apply(self, waiting: list[_Change]) -> None:
        """Make one snapshot of all waiting changes, in their order; those that cannot be are told why."""
        snapshot, last = self._current
        try:
            state = _State(last.keys, last.items, last.present.copy())
            done = self._merged(state, waiting)
            if done:
                index = PrefixIndex.of_sorted(state.keys, state.items, self._packing)
                snapshot = Snapshot(snapshot.version + 1, index)
        except BaseException as error:
            # Out of memory or interrupted: nothing was changed, and nobody may wait for it.
            for change in waiting:
                change.error = change.error or RuntimeError(f"the next snapshot could not be made: {error!r}")
            raise
        self._current = snapshot, state
        for change in done:
            change.version = snapshot.version

    @staticmethod
    def _merged(state: _State, waiting: list[_Change]) -> list[_Change]:
        """Bring the changes that are possible into the state; returns them.

        Changes of different items are merged in one pass. One that meets an item of a pass begins the next: to take
        an item off and to put it back elsewhere are two.
        """
        done: list[_Change] = []
        batch: list[_Change] = []
        touched = np.zeros(0, bool)
        for change in waiting:
            problem = _problem(state, change, len(state.items) + sum(map(_gain, batch)))
            if problem is not None:
                change.error = ValueError(problem)
                continue
            most = int(change.items.max()) + 1
            state.present = _at_least(state.present, most)
            touched = _at_least(touched, len(state.present))
            if touched[change.items].any():
                _merge(state, batch)
                batch, touched = [], np.zeros(len(state.present), bool)
            touched[change.items] = True
            state.present[change.items] = change.keys is not None
            batch.append(change)
            done.append(change)
        if batch:
            _merge(state, batch)
        return done


def _indices(items: NDArray[np.integer]) -> NDArray[np.int32]:
    """Item indices (n,) of one call, checked."""
    if items.ndim != 1 or not len(items) or not np.issubdtype(items.dtype, np.integer):
        raise ValueError(f"items must be (n,) integers with n > 0, not {items.shape} {items.dtype}")
    wrong = items[(items < 0) | (items >= _MOST_ITEMS)]
    if len(wrong):
        raise ValueError(f"item {wrong[0]} is not from 0 to {_MOST_ITEMS - 1}")
    ordered = np.sort(items)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise ValueError(f"item {twice[0]} is named twice")
    return items.astype(np.int32)


def _gain(change: _Change) -> int:
    """How many items more there are after it."""
    return len(change.items) if change.keys is not None else -len(change.items)


def _problem(state: _State, change: _Change, total: int) -> str | None:
    """Why a change is not possible where there are `total` items."""
    known = change.items < len(state.present)
    there = np.zeros(len(change.items), bool)
    there[known] = state.present[change.items[known]]
    if change.keys is not None:
        return f"item {change.items[there][0]} is there already" if there.any() else None
    if not there.all():
        return f"item {change.items[~there][0]} is not there"
    return "an index needs at least one item, all would be removed" if len(there) == total else None


def _at_least(flags: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """Flags (M,), with more of them that are false where M is less than `size`; room for some to come."""
    return flags if len(flags) >= size else np.pad(flags, (0, max(size, len(flags) * 5 // 4) - len(flags)))


def _merge(state: _State, batch: list[_Change]) -> None:
    """Bring changes of different items into the keys and items of the state."""
    removed = [change.items for change in batch if change.keys is None]
    if removed:
        gone = np.zeros(len(state.present), bool)
        gone[np.concatenate(removed)] = True
        kept = ~gone[state.items]
        state.keys, state.items = state.keys[kept], state.items[kept]
    added = [(change.keys, change.items) for change in batch if change.keys is not None]
    if added:
        keys, items = (np.concatenate(one) for one in zip(*added, strict=True))
        order = np.argsort(keys, kind="stable")
        keys, items = keys[order], items[order]
        # After the items of the same semantic ID, and after the new ones before it.
        places = np.searchsorted(state.keys, keys, side="right") + np.arange(len(keys))
        old = np.ones(len(state.keys) + len(keys), bool)
        old[places] = False
        state.keys, state.items = _spread(old, state.keys, keys), _spread(old, state.items, items)


def _spread(old: NDArray[np.bool_], before: Keys, new: Keys) -> Keys:
    """Both in one array: `before` where `old` is true, `new` elsewhere."""
    merged = np.empty(len(old), before.dtype)
    merged[old], merged[~old] = before, new
    return merged
