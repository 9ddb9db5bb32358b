"""Some of the log's events, and which of them lie before a request: what every view reads from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests


def places(start: NDArray[np.integer], length: NDArray[np.integer]) -> NDArray[np.int64]:
    """The places of n ranges one after the other.

    >>> places(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    return np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)


class Past:
    """Events of one sort, say purchases. A request's past ends where its history ends: before its own session."""

    def __init__(self, corpus: Corpus, chosen: NDArray[np.bool_]) -> None:
        """
        Args:
            chosen: (E,) which events are of this sort.
        """
        self.corpus, self.event = corpus, np.flatnonzero(chosen)

    def span(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q,) where each request's past begins and ends in `event`."""
        begin = np.searchsorted(self.event, requests.history_start)
        return begin, np.maximum(np.searchsorted(self.event, requests.history_end), begin)

    def latest(self, requests: Requests, most: int) -> NDArray[np.int64]:
        """(Q, most) the last events of each request's past, the latest first; -1 where there are fewer."""
        begin, end = self.span(requests)
        place = end[:, None] - 1 - np.arange(most)
        held = place >= begin[:, None]
        event = np.full(place.shape, -1, np.int64)
        event[held] = self.event[place[held]]
        return event
