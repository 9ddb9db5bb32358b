"""The nearest centroid, the same whatever the batch, the number of threads or the linear algebra library.

A matrix product in float32 is fast, but its last bits depend on the shape of the batch and on the threads; where two
centroids are (nearly) equally far, that would decide. So the product only proposes, and every pair closer than its
error bound is measured again, row by row, in float64. Real ties go to the lowest code.

A centroid may have a price, which is added to its squared distance (`quantizers/balance.py` says what for).
"""

from __future__ import annotations

from threading import local

import numpy as np
from numpy.typing import NDArray

_SCORES = 1 << 19  # of a block: they are read twice more while they are in the cache
_PAIRS = 1 << 21  # elements of the differences measured at once


class Nearest:
    """Search among (K, D) centroids with (K,) prices, prepared once for many blocks of vectors."""

    def __init__(self, centroids: NDArray[np.float32], prices: NDArray[np.float32] | None = None) -> None:
        lengths = np.square(centroids, dtype=np.float64).sum(axis=1)
        offset = 0.5 * (lengths if prices is None else lengths + prices)
        self._centroids, self._prices = centroids, prices
        self._offset = offset.astype(np.float32)
        # What rounding can move the difference of two scores by: D + 2 roundings of eps / 2 in each of them.
        reach = (centroids.shape[1] + 4) * float(np.finfo(np.float32).eps)
        self._slack_of_length = reach * float(np.sqrt(lengths.max()))
        self._slack = reach * float(np.abs(offset).max())

    def codes(self, x: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N, D) vectors -> (N,) the code of least squared distance plus price."""
        return self._search(x, None)

    def codes_and_margins(self, x: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(N, D) vectors -> (N,) their codes, (N,) what the second best costs more."""
        margin = np.full(len(x), np.inf, np.float32)
        return self._search(x, margin), margin

    def _search(self, x: NDArray[np.float32], margin: NDArray[np.float32] | None) -> NDArray[np.int32]:
        size = len(self._centroids)
        codes = np.zeros(len(x), np.int32)
        if size == 1:
            return codes
        block = min(1024, max(256, _SCORES // size))
        scores = _scratch(min(block, len(x)) * size).reshape(-1, size)
        every = np.arange(len(scores))
        pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for start in range(0, len(x), block):
            part = x[start : start + block]
            score, row = scores[: len(part)], every[: len(part)]
            np.matmul(part, self._centroids.T, out=score)
            score -= self._offset  # the largest score is the least squared distance plus price
            best = score.argmax(axis=1)
            top = score[row, best]
            score[row, best] = -np.inf
            runner_up = score[row, score.argmax(axis=1)]  # faster than max
            slack = np.sqrt(np.einsum("nd,nd->n", part, part)) * self._slack_of_length + self._slack
            doubtful = np.flatnonzero(runner_up >= top - slack)
            if len(doubtful):
                score[doubtful, best[doubtful]] = top[doubtful]
                rows, code = np.nonzero(score[doubtful] >= (top - slack)[doubtful, None])
                pairs.append((start + doubtful[rows], code))
            codes[start : start + block] = best
            if margin is not None:
                margin[start : start + block] = 2 * (top - runner_up)
        if pairs:
            rows, code = (np.concatenate(found) for found in zip(*pairs, strict=True))
            codes[np.unique(rows)] = _measured(x, self._centroids, self._prices, rows, code, code)
        return codes


def nearest(
    x: NDArray[np.float32], centroids: NDArray[np.float32], prices: NDArray[np.float32] | None = None
) -> NDArray[np.int32]:
    """(N, D) vectors, (K, D) centroids, (K,) prices -> (N,) the code of least squared distance plus price."""
    return Nearest(centroids, prices).codes(x)


def nearest_of_own(
    x: NDArray[np.float32], centroids: NDArray[np.float32], first: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.int32]:
    """(N, D) vectors, (T, D) centroids -> (N,) the nearest of each row's own `centroids[first : first + count]`.

    The code counts from `first`. Every pair is measured in float64: meant for few centroids a row.
    """
    codes = np.empty(len(x), np.int32)
    ends = np.cumsum(count)
    most = max(int(count.max(initial=1)), _PAIRS // max(1, x.shape[1]))
    start = 0
    while start < len(x):
        before = int(ends[start] - count[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        rows = np.repeat(np.arange(start, stop), count[start:stop])
        code = np.arange(len(rows)) - np.repeat(ends[start:stop] - count[start:stop] - before, count[start:stop])
        codes[start:stop] = _measured(x, centroids, None, rows, code, first[rows] + code)
        start = stop
    return codes


_memory = local()


def _scratch(numbers: int) -> NDArray[np.float32]:
    """(numbers,) of the thread's own: taking new pages from the system for each block costs as much as an argmax."""
    kept: NDArray[np.float32] | None = getattr(_memory, "kept", None)
    if kept is None or len(kept) < numbers:
        kept = _memory.kept = np.empty(numbers, np.float32)
    return kept[:numbers]


def _measured(
    x: NDArray[np.float32],
    centroids: NDArray[np.float32],
    prices: NDArray[np.float32] | None,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    centroid: NDArray[np.int64],
) -> NDArray[np.int64]:
    """(P,) rows in groups, (P,) codes and where their centroids are -> one code a group, ties to the lowest code."""
    cost = np.empty(len(rows))
    block = max(1, _PAIRS // max(1, x.shape[1]))
    for start in range(0, len(rows), block):
        rest = x[rows[start : start + block]].astype(np.float64)
        rest -= centroids[centroid[start : start + block]]
        cost[start : start + block] = (rest * rest).sum(axis=1)
    if prices is not None:
        cost += prices[codes]
    order = np.lexsort((codes, cost, rows))
    first = np.concatenate([[True], np.diff(rows) != 0])  # rows are sorted already, and stay so
    return codes[order[first]]
