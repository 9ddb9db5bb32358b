"""Lists that a log has shown: what was taken of them, at which rank, and how likely a user was to look there.

Clicks tell what people like only of what they saw. Where the chance to look at a rank is known, or assumed, weighing a
click by its inverse makes the expected reward that of a user who sees everything (Joachims, Swaminathan and Schnabel
2017, https://arxiv.org/abs/1608.04468). Weights are clipped, which trades some of the bias back for less variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError


@dataclass(frozen=True)
class Shown:
    """(B, S) items of the lists behind B events, in the order of their ranks, -1 in empty places; their ranks from 0;
    and the strongest event of each as a position in `EVENT_KINDS`."""

    items: NDArray[np.int64]
    ranks: NDArray[np.int64]
    kinds: NDArray[np.int64]


class LoggedLists:
    """Finds what was shown in answer to the search behind an event: the events of its session with its query.

    Args:
        events: (n,) the events that may be looked at.

    Raises:
        UserError: none of them is an impression.
    """

    def __init__(self, corpus: Corpus, events: NDArray[np.int64], most: int) -> None:
        self.corpus, self.most = corpus, most
        order = np.lexsort((corpus.kind[events], corpus.item[events], self._searches(events)))
        events = events[order]
        search, item = self._searches(events), corpus.item[events]
        other = (search[1:] != search[:-1]) | (item[1:] != item[:-1])
        first, last = np.append(True, other), np.append(other, True)  # of each item in a search, weakest event first
        shown = corpus.kind[events[first]] == EVENT_KINDS.index("impression")
        if not shown.any():
            remedy = "use another rollout, or a log with impressions"
            raise UserError("nothing was shown in this log", place=corpus.folder, remedy=remedy)
        of, item, rank = search[first][shown], item[first][shown], corpus.rank[events[first]][shown]
        kind = corpus.kind[events[last]][shown]
        again = np.lexsort((rank, of))
        self._of, self._item, self._rank, self._kind = (one[again].astype(np.int64) for one in (of, item, rank, kind))

    def __call__(self, events: NDArray[np.int64]) -> Shown:
        """The lists behind B events."""
        search = self._searches(events)
        start, stop = np.searchsorted(self._of, search), np.searchsorted(self._of, search, side="right")
        place = start[:, None] + np.arange(self.most)
        there = place < stop[:, None]
        place = np.where(there, place, 0)
        return Shown(*(np.where(there, values[place], -1) for values in (self._item, self._rank, self._kind)))

    def _searches(self, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) a number for the search of each event."""
        corpus = self.corpus
        return corpus.history_end[events] * (len(corpus.queries) + 1) + corpus.query[events] + 1


def examination(ranks: NDArray[np.integer], eta: float) -> NDArray[np.float64]:
    """(...) the chance that a user looks at ranks (...) from 0: (1 + rank)^-eta, as position-based models have it."""
    return (1.0 + np.maximum(ranks, 0)) ** -eta


def inverse_propensity(chance: NDArray[np.floating], most: float) -> NDArray[np.float64]:
    """(...) weights 1 / chance, at most `most`."""
    return np.minimum(1 / np.maximum(chance, 1e-12), most)
