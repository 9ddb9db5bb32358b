"""The nearest centroid, the same whatever the batch, the number of threads or the linear algebra library.

A matrix product in float32 is fast, but its last bits depend on the shape of the batch and on the threads; where two
centroids are (nearly) equally far, that would decide. So the product only proposes, and every pair too close to call is
measured again, row by row, in float64. Real ties go to the lowest code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLOCK_ELEMENTS = 1 << 24


def nearest(x: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int32]:
    """(N, D) vectors, (K, D) centroids -> (N,) the code of the nearest centroid."""
    codes = np.empty(len(x), np.int32)
    block = max(1, _BLOCK_ELEMENTS // max(1, len(centroids)))
    half_norms = 0.5 * np.einsum("kd,kd->k", centroids, centroids)
    longest = float(np.sqrt(2 * half_norms.max()))
    for start in range(0, len(x), block):
        part = x[start : start + block]
        score = part @ centroids.T - half_norms  # the largest score is the smallest distance
        best = score.argmax(axis=1)
        codes[start : start + block] = best
        length = np.sqrt(np.einsum("nd,nd->n", part, part))
        slack = 4 * x.shape[1] * np.finfo(np.float32).eps * longest * (length + longest)
        open_to_doubt = score >= (score[np.arange(len(part)), best] - slack)[:, None]
        doubtful = np.flatnonzero(open_to_doubt.sum(axis=1) > 1)
        if len(doubtful):
            codes[start + doubtful] = _measured(part, centroids, doubtful, open_to_doubt[doubtful])
    return codes


def _measured(
    x: NDArray[np.float32], centroids: NDArray[np.float32], rows: NDArray[np.int64], candidates: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(R,) the nearest of the (R, K) candidates of each of the R rows, in float64, ties to the lowest code."""
    pair_row, pair_code = np.nonzero(candidates)
    distance = np.empty(len(pair_row))
    block = max(1, _BLOCK_ELEMENTS // (8 * x.shape[1]))
    for start in range(0, len(distance), block):
        rest = x[rows[pair_row[start : start + block]]].astype(np.float64)
        rest -= centroids[pair_code[start : start + block]]
        distance[start : start + block] = (rest * rest).sum(axis=1)
    order = np.lexsort((pair_code, distance, pair_row))
    first = np.concatenate([[True], np.diff(pair_row) != 0])  # pair_row is sorted already, and stays so
    return pair_code[order[first]]
