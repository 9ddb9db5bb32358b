"""Which of a user's past purchases the generator sees: the most relevant to the query, with what is known of each.

Query-relevant selection follows QIN's relevance search unit (2310.06444); which history the model sees decides more
than anything else it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus.popularity import DAY
from onesearch.corpus.reader import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import Requests

FEATURES = ("relevance", "log_count", "decayed_count", "log_days", "rhythm")
HALF_LIFE = 42 * DAY
"""Of the decayed count: a purchase of six weeks ago counts half."""

REACH = 4096
"""At most so many past events of a user are looked at, the latest."""


@dataclass(frozen=True)
class HistorySlots:
    """H slots for each of Q requests, the most relevant purchase first.

    Attributes:
        item: (Q, H) int32, -1 where a slot is empty; each item once.
        event: (Q, H) int64, the last event with that item, -1 where empty.
        features: (Q, H, F) float32, `FEATURES`, zero where empty.
    """

    item: NDArray[np.int32]
    event: NDArray[np.int64]
    features: NDArray[np.float32]


class HistorySelector:
    """Selects the history slots of requests; holds (E,) float32 running counts over the log."""

    def __init__(self, corpus: Corpus, item_vectors: NDArray[np.float32], slots: int) -> None:
        """
        Args:
            item_vectors: (N, D) unit vectors of the items in the relevance space.
            slots: H.
        """
        self.corpus, self.item_vectors, self.slots = corpus, item_vectors, slots
        self._engaged = corpus.kind > EVENT_KINDS.index("impression")
        self._decayed = _decayed_counts(corpus)

    def select(self, requests: Requests, query_vectors: NDArray[np.float32]) -> HistorySlots:
        """The slots of Q requests, given their queries' (Q, D) unit vectors."""
        corpus, total = self.corpus, len(requests)
        start = np.maximum(requests.history_start, requests.history_end - REACH)
        length = requests.history_end - start
        row = np.repeat(np.arange(total), length)
        event = np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)
        last = (corpus.next_same[event] >= requests.history_end[row]) & self._engaged[event]
        row, event = row[last], event[last]
        item = corpus.item[event]
        relevance = np.einsum("pd,pd->p", query_vectors[row], self.item_vectors[item])
        days = self._days(requests.time[row], event)
        count = corpus.nth_same[event] + np.float32(1)
        decayed = self._decayed[event] * np.exp2(-days * (DAY / HALF_LIFE))
        score = relevance + 0.08 * np.log(count) - 0.02 * np.log1p(days)
        order = np.argsort(row * 8.0 - score, kind="stable")  # one key: scores lie well within (-4, 4)
        row, event = row[order], event[order]
        first = np.searchsorted(row, np.arange(total))
        place = np.arange(len(row)) - first[row]
        kept = place < self.slots
        row, event, place, order = row[kept], event[kept], place[kept], order[kept]

        slots = HistorySlots(
            item=np.full((total, self.slots), -1, np.int32),
            event=np.full((total, self.slots), -1, np.int64),
            features=np.zeros((total, self.slots, len(FEATURES)), np.float32),
        )
        slots.item[row, place] = corpus.item[event]
        slots.event[row, place] = event
        slots.features[row, place] = np.stack(
            [
                relevance[order],
                np.log(count[order]),
                np.log1p(decayed[order]),
                np.log1p(days[order]) / 4,
                np.log1p(days[order] * decayed[order]) / 4,  # overdue or just bought, at the item's own pace
            ],
            axis=-1,
        )
        return slots

    def _days(self, now: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.float32]:
        """Days since the event; where the log has no clock, places in the user's history stand for days."""
        unit = DAY if self.corpus.has_clock else 1
        return (np.maximum(now - self.corpus.time[event], 0) / np.float32(unit)).astype(np.float32)


def _decayed_counts(corpus: Corpus) -> NDArray[np.float32]:
    """(E,) how often the user had chosen the event's item up to this event, older choices decayed by HALF_LIFE."""
    count = np.ones(len(corpus.item), np.float32)
    unit = HALF_LIFE if corpus.has_clock else HALF_LIFE // DAY
    earlier = np.flatnonzero(corpus.next_same < len(corpus.item))
    rank = corpus.nth_same[earlier]
    earlier = earlier[np.argsort(rank, kind="stable")]
    edges = np.searchsorted(np.sort(rank), np.arange(rank.max(initial=-1) + 2))
    for nth in range(len(edges) - 1):  # one step for all items bought n times; the longest run is a few hundred
        event = earlier[edges[nth] : edges[nth + 1]]
        later = corpus.next_same[event]
        gap = (corpus.time[later] - corpus.time[event]) / unit
        count[later] += count[event] * np.exp2(-gap).astype(np.float32)
    return count
