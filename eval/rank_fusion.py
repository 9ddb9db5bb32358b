"""Scores of several scorers made one, with weights that are chosen on validation lists.

- Reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009): the sum of 1 / (60 + rank); the weight that each
  scorer has here is ours, theirs is 1.
- z-scores: the sum of scores that have mean 0 and variance 1 in each list, each with a weight. Sums of normalised
  scores are CombSUM of Fox and Shaw, "Combination of Multiple Searches", TREC-2, 1994.

Both are weighted sums of something that each scorer gives each item, so one search finds the weights of both: one
weight at a time, by MRR@10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.tune import coordinate_search, reciprocal_rank

CONSTANT: Final = 60
WEIGHTS: Final = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
Part = Callable[[NDArray[np.float64], NDArray[np.bool_]], NDArray[np.float64]]


@dataclass(frozen=True)
class Fusion:
    """A way to make many scores one.

    Attributes:
        part: what of (Q, K) scores and (Q, K) places that are not empty is summed.
        weights: of each scorer, by name.
    """

    name: str
    part: Part
    weights: dict[str, float]

    @classmethod
    def tuned(
        cls,
        name: str,
        part: Part,
        scores: Mapping[str, NDArray[np.float64]],
        there: NDArray[np.bool_],
        right: NDArray[np.bool_],
    ) -> Fusion:
        """Choose the weights by MRR@10 on lists (Q, K); those without anything right teach nothing."""
        taught = right.any(axis=1)
        parts = {one: part(values[taught], there[taught]) for one, values in scores.items()}
        there, right = there[taught], right[taught]

        def objective(**weights: float) -> float:
            return reciprocal_rank(*_places_of_best(_summed(parts, weights, there), right))

        start = dict.fromkeys(scores, 1.0)
        return cls(name, part, coordinate_search(objective, dict.fromkeys(scores, WEIGHTS), start, rounds=4))

    def __call__(self, scores: Mapping[str, NDArray[np.float64]], there: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(Q, K) fused scores, -inf in empty places."""
        used = {one: self.part(scores[one], there) for one, weight in self.weights.items() if weight}
        return _summed(used, self.weights, there)


def reciprocal_ranks(scores: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(Q, K) 1 / (60 + rank), the best of a list having rank 1; equal scores share the mean of their ranks.

    >>> (1 / reciprocal_ranks(np.array([[0.3, 0.9, 0.3]]), np.ones((1, 3), bool))).round(9)
    array([[62.5, 61. , 62.5]])
    """
    row, column = np.nonzero(there)
    score = scores[row, column]
    order = np.lexsort((-score, row))
    score, of = score[order], row[order]
    new = np.ones(len(of), bool)
    new[1:] = (score[1:] != score[:-1]) | (of[1:] != of[:-1])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(of)) - 1
    size = there.sum(axis=1)
    rank = ((first + last) / 2)[np.cumsum(new) - 1] - (np.cumsum(size) - size)[of] + 1
    found = np.zeros(scores.shape)
    found[of, column[order]] = 1 / (CONSTANT + rank)
    return found


def z_scores(scores: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(Q, K) scores with mean 0 and variance 1 in each list; what cannot be scored (-inf) counts as the list's lowest,
    and a list of equal scores is all 0.

    >>> z_scores(np.array([[1.0, 3.0, -np.inf]]), np.ones((1, 3), bool)).round(3)
    array([[-0.707,  1.414, -0.707]])
    """
    finite = there & np.isfinite(scores)
    lowest = np.where(finite, scores, np.inf).min(axis=1, keepdims=True)
    filled = np.where(finite, scores, np.where(np.isfinite(lowest), lowest, 0.0))
    count = np.maximum(there.sum(axis=1, keepdims=True), 1)
    centred = np.where(there, filled - np.where(there, filled, 0).sum(axis=1, keepdims=True) / count, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)


KINDS: Final[dict[str, Part]] = {"reciprocal ranks": reciprocal_ranks, "z-scores": z_scores}


def _summed(
    parts: Mapping[str, NDArray[np.float64]], weights: Mapping[str, float], there: NDArray[np.bool_]
) -> NDArray[np.float64]:
    total = np.zeros(there.shape)
    for name, part in parts.items():
        if weights[name]:
            total += weights[name] * part
    return np.where(there, total, -np.inf)


def _places_of_best(
    scores: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(Q,) how many items score above the best right one, and how many wrong ones score the same."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return (scores > best).sum(axis=1), ((scores == best) & ~right).sum(axis=1)
