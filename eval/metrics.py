"""Ranking metrics by name, one value a query, and intervals that respect that a user's queries hang together.

The numbers come from pytrec_eval (the C code of NIST's trec_eval). Intervals are percentile bootstrap intervals in
which whole users are drawn, not queries: two queries of one household are not independent (Field and Welsh,
"Bootstrapping clustered data", 2007). One set of draws serves all systems, so a difference of two systems is paired.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    return _trec_values(items, {str(q): {str(target): 1} for q, target in enumerate(targets.tolist())}, metrics)


def per_list(
    items: NDArray[np.int32], labels: NDArray[np.integer], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Metrics of rankings with any number of right answers, all of which are in the ranking: {name: (Q,) float64}.

    Args:
        items: (Q, K) ranked items, best first, -1 where there is none.
        labels: (Q, K) how right each is, 0 for wrong; NDCG takes it for the gain.
        metrics: names like "recall@10", "ndcg@10", "mrr@10".

    >>> per_list(np.array([[4, 7, 9]], np.int32), np.array([[0, 1, 1]]), ["mrr@10", "recall@2"])
    {'mrr@10': array([0.5]), 'recall@2': array([0.5])}
    """
    right = (labels > 0) & (items >= 0)
    relevant: dict[str, dict[str, int]] = {str(q): {} for q in np.flatnonzero(right.any(axis=1)).tolist()}
    rows, _ = np.nonzero(right)
    for q, item, label in zip(rows.tolist(), items[right].tolist(), labels[right].tolist(), strict=True):
        relevant[str(q)][str(item)] = label
    # What is below the deepest cut-off counts only in how many right answers there are, and those `relevant` holds.
    return _trec_values(items[:, : max(_parse(name)[1] for name in metrics)], relevant, metrics)


def _trec_values(
    items: NDArray[np.int32], relevant: dict[str, dict[str, int]], metrics: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """(Q,) values of each metric; `relevant` holds the right answers of each query by its number."""
    _refuse_repeats(items)
    parsed = {name: _parse(name) for name in metrics}
    values = {name: np.zeros(len(items)) for name in metrics}
    # trec_eval has no cut-off for the reciprocal rank, so the ranking is cut for it; the others share one full run.
    depths = {cut for measure, cut in parsed.values() if measure == "recip_rank"}
    for depth in sorted({*depths, items.shape[1]}):
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


@dataclass(frozen=True)
class Drawn:
    """A value, and what it is in each of R bootstrap draws; of two on the same draws the difference is paired.

    Attributes:
        draws: (R,) float64.
    """

    value: float
    draws: NDArray[np.float64]

    def minus(self, other: Drawn) -> Drawn:
        """The difference, draw by draw."""
        return Drawn(self.value - other.value, self.draws - other.draws)

    def estimate(self) -> Estimate:
        """The value with its percentile interval; draws in which it is not defined are left out."""
        defined = self.draws[np.isfinite(self.draws)]
        if len(defined) == 0:
            return Estimate(self.value, float("nan"), float("nan"))
        low, high = np.percentile(defined, [2.5, 97.5])
        return Estimate(self.value, float(low), float(high))

    def p_value(self) -> float:
        """Of the hypothesis that a difference is 0, two-sided: twice the share of draws on the rarer side of 0, and
        never less than the number of draws can tell (Davison and Hinkley, "Bootstrap Methods", 1997, section 4.2)."""
        defined = self.draws[np.isfinite(self.draws)]
        rarer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
        return min(1.0, 2 * (rarer + 1) / (len(defined) + 1))


class Bootstrap:
    """Draws of whole groups (users) with replacement, made once and used for every value that is estimated.

    Attributes:
        group: (Q,) int64 number of each query's user. drawn: (R, U) float64 how often each user is in each draw.
    """

    def __init__(self, groups: NDArray[np.integer], *, resamples: int = 1000, seed: int = 0) -> None:
        """`groups`: (Q,) which user each query belongs to."""
        _, self.group = np.unique(groups, return_inverse=True)
        count = int(self.group.max()) + 1 if len(self.group) else 0
        draws = np.random.default_rng(seed)
        self.drawn = draws.multinomial(count, np.full(count, 1 / max(count, 1)), size=resamples).astype(np.float64)

    def totals(self, values: NDArray[np.number[Any]]) -> NDArray[np.float64]:
        """(R,) the sum of (Q,) values in each draw."""
        return self.drawn @ np.bincount(self.group, weights=values, minlength=self.drawn.shape[1])

    def ratio(self, numerator: NDArray[np.number[Any]], denominator: NDArray[np.number[Any]]) -> Drawn:
        """The sum of (Q,) numerators over the sum of (Q,) denominators: a weighted mean, for example."""
        below, all_below = self.totals(denominator), float(denominator.sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = self.totals(numerator) / below
        return Drawn(float(numerator.sum()) / all_below if all_below else float("nan"), draws)

    def mean(self, values: NDArray[np.float64]) -> Estimate:
        """The mean of (Q,) values and its percentile interval. The mean of a query, not the mean of users' means."""
        return self.ratio(values, np.ones(len(values))).estimate()

    def difference(self, values: NDArray[np.float64], other: NDArray[np.float64]) -> Estimate:
        """The mean of `values - other`, paired by query, on the same draws as `mean`."""
        return self.mean(values - other)
