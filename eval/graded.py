"""Relevance in grades, where a log only says what was bought: how attractive each item is to the user of a search.

The item that was bought after a search has .9, another one .02 + .38 s^2, with s the share of the bought item's
category path (from the root on) that it has too. The numbers are ours. They are the truth of the click simulator
(`eval/clicks.py`), and what `eval/alignment.py` measures beside what was bought.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus
from onesearch.reward.levels import category_prefixes, shared_category

BOUGHT: Final = 0.9
ALIKE: Final = 0.4
"""Of an item of the same category."""
FLOOR: Final = 0.02


class Truth:
    """How attractive each item is to whom a search is from."""

    def __init__(self, corpus: Corpus) -> None:
        self._path = category_prefixes(corpus)

    def __call__(self, targets: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.float64]:
        """(Q, K) the chance that items (Q, K) are clicked when they are looked at, by who bought targets (Q,); 0 in
        empty places, which are -1."""
        share = shared_category(self._path[items], self._path[targets][:, None])
        found = np.where(items == targets[:, None], BOUGHT, FLOOR + (ALIKE - FLOOR) * share**2)
        return np.where(items < 0, 0.0, found)

    def best(self, targets: NDArray[np.integer], length: int) -> NDArray[np.float64]:
        """(Q, length) what the best list holds, the whole catalogue being there to choose from."""
        everything, step = np.arange(len(self._path)), 256
        different, of = np.unique(targets, return_inverse=True)
        best, number = np.zeros((len(different), length)), min(length, len(everything))
        for start in range(0, len(different), step):
            part = different[start : start + step]
            every = -self(part, np.broadcast_to(everything, (len(part), len(everything))))
            best[start : start + step, :number] = -np.sort(np.partition(every, number - 1, axis=1)[:, :number], axis=1)
        return best[of]


def relevance(attraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q,) the mean attractiveness of lists (Q, K)."""
    return attraction.mean(1)


def graded_ndcg(attraction: NDArray[np.float64], best: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q,) discounted attractiveness of lists (Q, K) as a share of that of the best ones (Q, K)."""
    weight = 1 / np.log2(np.arange(2, attraction.shape[1] + 2))
    return (attraction @ weight) / (best @ weight)
