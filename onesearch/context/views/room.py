"""What does not fit into the encoder's positions is dropped: the oldest first, never the query, and it is counted."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from multiprocessing import Value
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.errors import UserError

log = logging.getLogger(__name__)


def _tally() -> Any:
    return Value("q", 0)  # shared with the processes that may load batches


@dataclass(frozen=True)
class Room:
    """The encoder positions of a model.

    Attributes:
        positions: how many there are; None where any number will do.
        dropped, affected, seen: past purchases and queries that were left out, requests they were left out of, and
            requests in all, since the last `report`.
    """

    positions: int | None = None
    dropped: Any = field(default_factory=_tally, repr=False)
    affected: Any = field(default_factory=_tally, repr=False)
    seen: Any = field(default_factory=_tally, repr=False)

    def check(self, fixed: int) -> None:
        """Raises a `UserError` where the positions do not even hold what is never dropped."""
        if self.positions is not None and self.positions < fixed:
            raise UserError(
                f"the query and the views of the user need {fixed} positions",
                place="max_position_embeddings of the backbone",
                value=self.positions,
                remedy="leave out a view, lower `long_tokens`, or use a backbone with more positions",
            )

    def fit(
        self, slots: HistorySlots, asked: NDArray[np.int64], fixed: NDArray[np.integer]
    ) -> tuple[HistorySlots, NDArray[np.int64]]:
        """The history slots and the past queries without the oldest of them, as many as there is no room for.

        Args:
            asked: (Q, n) events of past queries, -1 in empty places, which come last.
            fixed: (Q,) positions that the rest takes.
        """
        if self.positions is None:
            return slots, asked
        event = np.concatenate([slots.event, asked], 1)
        excess = np.maximum((event >= 0).sum(1) + fixed - self.positions, 0)
        if not excess.any():
            _add(self.seen, len(event))
            return slots, asked
        age = np.where(event >= 0, event, np.iinfo(np.int64).max)
        rank = np.argsort(np.argsort(age, axis=1, kind="stable"), axis=1, kind="stable")
        dropped = (rank < excess[:, None]) & (event >= 0)
        self.count(dropped.sum(1))
        from_slots, from_asked = np.split(dropped, [slots.event.shape[1]], axis=1)
        (asked,) = _without(from_asked, (asked, -1))
        item, kept, features = _without(from_slots, (slots.item, -1), (slots.event, -1), (slots.features, 0))
        return replace(slots, item=item, event=kept, features=features), asked

    def count(self, dropped: NDArray[np.integer]) -> None:
        """Remember how many past purchases and queries of each request (Q,) were dropped."""
        _add(self.seen, len(dropped))
        _add(self.dropped, int(dropped.sum()))
        _add(self.affected, int((dropped > 0).sum()))

    def report(self, of: str) -> None:
        """Tell what was dropped, if anything was, and count from nothing again."""
        dropped, affected, seen = (_taken(one) for one in (self.dropped, self.affected, self.seen))
        if dropped:
            log.warning(
                "%s: %s past purchases and queries, the oldest of %s of %s requests, did not fit into %d positions",
                of,
                f"{dropped:,}",
                f"{affected:,}",
                f"{seen:,}",
                self.positions,
            )


def _without(dropped: NDArray[np.bool_], *arrays: tuple[NDArray[Any], int]) -> list[NDArray[Any]]:
    """(Q, n, ...) arrays without some places; the others move up, and empty ones hold the given value."""
    order = np.argsort(dropped, axis=1, kind="stable")
    gone = np.take_along_axis(dropped, order, 1)
    found = []
    for values, empty in arrays:
        extra = (1,) * (values.ndim - 2)
        moved = np.take_along_axis(values, order.reshape(*order.shape, *extra), 1)
        found.append(np.where(gone.reshape(*gone.shape, *extra), values.dtype.type(empty), moved))
    return found


def _add(tally: Any, number: int) -> None:
    with tally.get_lock():
        tally.value += number


def _taken(tally: Any) -> int:
    with tally.get_lock():
        number, tally.value = int(tally.value), 0
    return number
