"""How popular every item was at any moment: decayed counts, kept as a few snapshots in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus.reader import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import TRAIN, leave_one_out

DAY = 86_400


@dataclass(frozen=True)
class Popularity:
    """S snapshots of (exponentially decayed) event counts of N items.

    The snapshot of a moment counts only events before the snapshot's own time, which is never later than that moment:
    no system can see the future, and every system sees the same past.

    Attributes:
        starts: (S,) int64 ascending times; snapshot s serves the moments from `starts[s]` until `starts[s + 1]`.
        counts: (S, N) float32.
    """

    starts: NDArray[np.int64]
    counts: NDArray[np.float32]

    def at(self, time: NDArray[np.int64]) -> NDArray[np.int64]:
        """(Q,) index of the snapshot that serves each moment."""
        return np.maximum(np.searchsorted(self.starts, time, side="right") - 1, 0)


def popularity(corpus: Corpus, half_life: float, every: int = 7 * DAY, most: int = 64) -> Popularity:
    """Decayed counts of clicks, carts and purchases; `half_life` and `every` in the unit of `corpus.time` (seconds).

    A log without a clock gets one snapshot of undecayed counts: which of two users' events came first is not known
    there, so it counts the training events of `leave_one_out`. A training example's own event is among them, which a
    held-out one's is not: on such logs a prior looks a little better in training than it is.
    """
    items = len(corpus.items)
    if not corpus.has_clock:
        counted = (corpus.kind > EVENT_KINDS.index("impression")) & (leave_one_out(corpus) == TRAIN)
        counts = np.bincount(corpus.item[counted], minlength=items).astype(np.float32)
        return Popularity(np.zeros(1, np.int64), counts[None])
    first, last = int(corpus.time.min()), int(corpus.time.max())
    every = max(every, -(-(last - first + 1) // most))
    starts = np.arange(first, last + 1, every, dtype=np.int64)
    added = np.zeros((len(starts), items))
    for span in corpus.spans():
        time, counted = corpus.time[span], corpus.kind[span] > EVENT_KINDS.index("impression")
        period = np.minimum((time - first) // every, len(starts) - 1)
        age = (starts[0] + (period + 1) * every) - time  # until the next snapshot
        np.add.at(added.ravel(), period * items + corpus.item[span], np.exp2(-age / half_life) * counted)
    counts = np.zeros((len(starts), items), np.float32)
    keep = np.exp2(-every / half_life)
    for s in range(1, len(starts)):
        counts[s] = counts[s - 1] * keep + added[s - 1]
    return Popularity(starts, counts)
