"""What sells most at the moment, whatever was asked; and the popularity that all other systems share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.tune import coordinate_search, reciprocal_rank
from onesearch.corpus import Corpus, Popularity, Requests, popularity

DAY: Final = 86_400
HALF_LIVES: Final = (14.0, 28.0, 56.0, 182.0, math.inf)
"""In days; 2, 4, 8 and 26 weeks."""


def day(corpus: Corpus) -> int:
    """A day in the unit of `corpus.time`; where the log has no clock, half-lives count events instead."""
    return DAY if corpus.has_clock else 1


class FreshPopularity:
    """Popularity snapshots of a log at several half-lives, made once each, as numbers between 0 and 1."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._made: dict[float, tuple[Popularity, NDArray[np.float32]]] = {}

    def table(self, half_life: float) -> tuple[Popularity, NDArray[np.float32]]:
        """The snapshots of a half-life in days, and (S, N) log(1 + count), divided by the greatest of its snapshot."""
        if half_life not in self._made:
            snapshots = popularity(self._corpus, half_life * day(self._corpus))
            logs = np.log1p(snapshots.counts)
            logs /= np.maximum(logs.max(axis=1, keepdims=True), 1e-9)
            self._made[half_life] = snapshots, logs
        return self._made[half_life]


class PopularitySystem:
    """Ranks by decayed purchase counts of the weeks before the request; the half-life is tuned."""

    name = "popularity"
    calibrated = logarithmic = False

    def __init__(self, fresh: FreshPopularity, half_life: float) -> None:
        self.tuned: dict[str, Any] = {"half_life_days": half_life}
        self._snapshots, self._logs = fresh.table(half_life)

    @classmethod
    def fit(cls, fresh: FreshPopularity, valid: Requests, half_lives: Sequence[float] = HALF_LIVES) -> PopularitySystem:
        """Choose the half-life with the best MRR@10 on `valid`."""

        def objective(half_life: float) -> float:
            snapshots, logs = fresh.table(half_life)
            at = snapshots.at(valid.time)
            order = np.argsort(np.argsort(-logs, axis=1, kind="stable"), axis=1)
            return reciprocal_rank(order[at, valid.target])

        best = coordinate_search(objective, {"half_life": half_lives}, {"half_life": half_lives[0]})
        return cls(fresh, best["half_life"])

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        order = np.argsort(-self._logs, axis=1, kind="stable")[:, :k].astype(np.int32)
        best = np.take_along_axis(self._logs, order, axis=1)
        at = self._snapshots.at(requests.time)
        return pad(order[at], k, -1), pad(best[at], k, -np.inf)

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        return self._logs[self._snapshots.at(requests.time)[:, None], items]


def pad(values: NDArray[Any], k: int, filler: float) -> NDArray[Any]:
    """(Q, <=k) to (Q, k)."""
    missing = k - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=filler) if missing else values
