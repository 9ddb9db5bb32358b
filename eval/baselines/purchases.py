"""What a user bought before a request: the distinct items, how often, when, and counts that fade with time.

Everything is kept per event along the chain of a user's events with one item, so that the state before a request is
read off the last event of each item in the history: no join and no sort per request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS


@dataclass(frozen=True)
class OwnItems:
    """P pairs of a request and an item of its history, by request.

    Attributes:
        row: (P,) the request. item: (P,) the item. event: (P,) the user's last event with that item before the request.
    """

    row: NDArray[np.int64]
    item: NDArray[np.int32]
    event: NDArray[np.int64]


class Purchases:
    """Own purchases of all users (clicks and carts count as well; impressions do not)."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.counted = corpus.kind > EVENT_KINDS.index("impression")
        order = np.argsort(corpus.nth_same, kind="stable")
        ends = np.cumsum(np.bincount(corpus.nth_same))
        self._waves = np.split(order, ends[:-1])  # wave n: every n-th event of a chain
        self.count = np.where(self.counted, 1, 0).astype(np.int32)
        self.first = np.where(self.counted, corpus.time, np.iinfo(np.int64).max)
        self.last = np.where(self.counted, corpus.time, np.iinfo(np.int64).min)
        for wave, following in self._steps():
            self.count[following] += self.count[wave]
            self.first[following] = np.minimum(self.first[following], self.first[wave])
            self.last[following] = np.maximum(self.last[following], self.last[wave])
        self._faded: dict[float, NDArray[np.float32]] = {}

    def _steps(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Per wave: the events that have a next one with the same item, and those next ones."""
        total = len(self._corpus.user)
        following = [self._corpus.next_same[wave] for wave in self._waves]
        return [(wave[after < total], after[after < total]) for wave, after in zip(self._waves, following, strict=True)]

    def faded(self, half_life: float) -> NDArray[np.float32]:
        """(E,) purchases of the event's item up to the event, each halved with every `half_life` since it."""
        if half_life not in self._faded:
            sums = self.counted.astype(np.float32)
            for wave, following in self._steps():
                passed = self._corpus.time[following] - self._corpus.time[wave]
                sums[following] += sums[wave] * np.exp2(-passed / half_life).astype(np.float32)
            self._faded[half_life] = sums
        return self._faded[half_life]

    def faded_at(self, half_life: float, event: NDArray[np.int64], now: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P,) the same, seen from the moments `now`."""
        passed = now - self._corpus.time[event]
        return self.faded(half_life)[event] * np.exp2(-passed / half_life).astype(np.float32)

    def before(self, requests: Requests) -> OwnItems:
        """The distinct items that each request's user bought before it."""
        row, event = slices(requests.history_start, requests.history_end)
        is_last = self._corpus.next_same[event] >= requests.history_end[row]
        is_last &= self.count[event] > 0
        row, event = row[is_last], event[is_last]
        return OwnItems(row, self._corpus.item[event], event)


def slices(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All the numbers of the ranges `starts[i]:ends[i]`, and which range each belongs to.

    >>> slices(np.array([5, 2]), np.array([7, 3]))
    (array([0, 0, 1]), array([5, 6, 2]))
    """
    lengths = ends - starts
    row = np.repeat(np.arange(len(starts)), lengths)
    skipped = np.cumsum(lengths) - lengths
    return row, np.arange(int(lengths.sum())) + np.repeat(starts - skipped, lengths)
