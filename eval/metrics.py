"""Ranking metrics by name, one value a query, and intervals that respect that a user's queries hang together.

The numbers come from pytrec_eval (the C code of NIST's trec_eval). Intervals are percentile bootstrap intervals in
which whole users are drawn, not queries: two queries of one household are not independent (Field and Welsh,
"Bootstrapping clustered data", 2007). One set of draws serves all systems, so a difference of two systems is paired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pytrec_eval
from numpy.typing import NDArray

from onesearch.errors import UserError

METRICS: Final = ("recall@1", "recall@5", "recall@10", "recall@50", "mrr@10", "ndcg@10")

_TREC_NAME: Final = {"recall": "recall", "ndcg": "ndcg_cut", "mrr": "recip_rank"}


def per_query(
    items: NDArray[np.int32], targets: NDArray[np.int32], metrics: Sequence[str] = METRICS
) -> dict[str, NDArray[np.float64]]:
    """Metrics of rankings with one right answer each: {name: (Q,) float64}.

    Args:
        items: (Q, K) ranked items, best first, -1 where there is none. The order counts, scores play no part.
        targets: (Q,) the right answer.
        metrics: names like "recall@10", "ndcg@10", "mrr@10".

    >>> per_query(np.array([[4, 7, 9], [1, 2, -1]], np.int32), np.array([7, 3], np.int32), ["mrr@10", "recall@1"])
    {'mrr@10': array([0.5, 0. ]), 'recall@1': array([0., 0.])}
    """
    if len(items) != len(targets):
        raise ValueError(f"{len(items)} rankings for {len(targets)} targets")
    _refuse_repeats(items)
    parsed = {name: _parse(name) for name in metrics}
    values = {name: np.zeros(len(targets)) for name in metrics}
    relevant = {str(q): {str(target): 1} for q, target in enumerate(targets.tolist())}
    # trec_eval has no cut-off for the reciprocal rank, so the ranking is cut for it; the others share one full run.
    depths = {cut for measure, cut in parsed.values() if measure == "recip_rank"}
    for depth in [*sorted(depths), items.shape[1]]:
        wanted = {
            name: measure if measure == "recip_rank" else f"{measure}_{cut}"
            for name, (measure, cut) in parsed.items()
            if (depth == cut if measure == "recip_rank" else depth == items.shape[1])
        }
        if not wanted:
            continue
        found = pytrec_eval.RelevanceEvaluator(relevant, set(wanted.values())).evaluate(_as_run(items[:, :depth]))
        for name, measure in wanted.items():
            for query, result in found.items():
                values[name][int(query)] = result[measure]
    return values


def _parse(name: str) -> tuple[str, int]:
    match = re.fullmatch(r"(recall|ndcg|mrr)@([1-9]\d*)", name)
    if match is None:
        raise UserError("unknown metric", value=name, remedy="name one like recall@10, ndcg@10 or mrr@10")
    return _TREC_NAME[match[1]], int(match[2])


def _as_run(items: NDArray[np.int32]) -> dict[str, dict[str, float]]:
    """Scores fall by one a rank, so that trec_eval has no ties to break."""
    falling = [float(-rank) for rank in range(items.shape[1])]
    return {
        str(q): {str(item): score for item, score in zip(row, falling, strict=True) if item >= 0}
        for q, row in enumerate(items.tolist())
    }


def _refuse_repeats(items: NDArray[np.int32]) -> None:
    ordered = np.sort(items, axis=1)
    repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if repeated.any():
        raise ValueError(f"ranking {int(np.flatnonzero(repeated)[0])} holds an item twice")


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


class Bootstrap:
    """Draws of whole groups (users) with replacement, made once and used for every value that is estimated."""

    def __init__(self, groups: NDArray[np.integer], *, resamples: int = 1000, seed: int = 0) -> None:
        """`groups`: (Q,) which user each query belongs to."""
        _, self._group = np.unique(groups, return_inverse=True)
        count = int(self._group.max()) + 1 if len(self._group) else 0
        draws = np.random.default_rng(seed)
        self._drawn = draws.multinomial(count, np.full(count, 1 / max(count, 1)), size=resamples).astype(np.float64)
        self._sizes = self._drawn @ np.bincount(self._group, minlength=count)

    def mean(self, values: NDArray[np.float64]) -> Estimate:
        """The mean of (Q,) values and its percentile interval. The mean of a query, not the mean of users' means."""
        if len(values) == 0:
            return Estimate(float("nan"), float("nan"), float("nan"))
        means = self._drawn @ np.bincount(self._group, weights=values, minlength=self._drawn.shape[1]) / self._sizes
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(float(values.mean()), float(low), float(high))

    def difference(self, values: NDArray[np.float64], other: NDArray[np.float64]) -> Estimate:
        """The mean of `values - other`, paired by query, on the same draws as `mean`."""
        return self.mean(values - other)
