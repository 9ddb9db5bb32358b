"""The last time a user took to an item before a moment, found for many pairs at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS


@dataclass(frozen=True)
class Past:
    """The events of a log in the order of user, item, time: `keys` (E',) int64 ascending, `events` (E',) int64.

    Impressions are left out: they are no choice of the user's.
    """

    keys: NDArray[np.int64]
    events: NDArray[np.int64]
    _items: int
    _length: int

    @classmethod
    def of(cls, corpus: Corpus) -> Past:
        """Sort the events of a log once; 16 bytes an event."""
        chosen = np.flatnonzero(corpus.kind > EVENT_KINDS.index("impression")).astype(np.int64)
        length = int(np.diff(corpus.offsets).max(initial=0)) + 1
        user, item = corpus.user[chosen].astype(np.int64), corpus.item[chosen].astype(np.int64)
        keys = (user * len(corpus.items) + item) * length + (chosen - corpus.offsets[user])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], chosen[order], len(corpus.items), length)

    def last(self, requests: Requests, items: NDArray[np.integer]) -> NDArray[np.int64]:
        """(Q, K) the last event of each request's user with items (Q, K) before the request; -1 for none.

        A request with an empty history knows of none, whatever its user.
        """
        if not len(self.keys):
            return np.full(items.shape, -1, np.int64)
        pair = (requests.user.astype(np.int64)[:, None] * self._items + np.maximum(items, 0)) * self._length
        end = pair + (requests.history_end - requests.history_start)[:, None]
        place = np.searchsorted(self.keys, end) - 1  # the greatest key below
        found = (place >= 0) & (self.keys[np.maximum(place, 0)] >= pair) & (items >= 0)
        return np.where(found, self.events[np.maximum(place, 0)], -1)
