"""Whether the views of one product (its photos, its texts, the searches for it) are given the same codes.

All codes equal would agree perfectly and say nothing: read these beside `independent_coding_rate`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantizers.metrics import prefix_ids


def prefix_agreement(codes: NDArray[np.integer], product: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, L) codes of views, (N,) products -> (L,) share of pairs of views of one product with equal prefixes.

    Not a number if no product has two views.

    >>> prefix_agreement(np.array([[1, 1], [1, 1], [1, 2], [5, 0]]), np.array([7, 7, 7, 9])).round(3).tolist()
    [1.0, 0.333]
    """
    _check(codes, product)
    groups = prefix_ids(np.column_stack([np.unique(product, return_inverse=True)[1], codes]))
    pairs = np.array([_pairs(groups[:, level]) for level in range(groups.shape[1])], np.float64)
    return pairs[1:] / pairs[0] if pairs[0] else np.full(codes.shape[1], np.nan)


def prefix_landing(
    codes: NDArray[np.integer], product: NDArray[np.integer], product_codes: NDArray[np.integer]
) -> NDArray[np.float64]:
    """(N, L) codes of views, (N,) rows of their products, (P, L) codes of products -> (L,) share on the prefix.

    >>> codes = np.array([[1, 1], [1, 2], [3, 0], [4, 1]])
    >>> prefix_landing(codes, np.array([0, 0, 1, 1]), product_codes=np.array([[1, 2], [4, 0]])).tolist()
    [0.75, 0.25]
    """
    _check(codes, product)
    return np.logical_and.accumulate(codes == product_codes[product], axis=1).mean(axis=0)


def category_purity(code: NDArray[np.integer], category: NDArray[np.integer]) -> float:
    """(N,) codes of one level, (N,) categories, -1 where unknown -> share of the known in their code's main one.

    >>> category_purity(np.array([0, 0, 0, 1, 1]), np.array([5, 5, 6, 6, -1]))
    0.75
    """
    known = category >= 0
    pair, count = np.unique(np.column_stack([code[known], category[known]]), axis=0, return_counts=True)
    if not len(pair):
        return float("nan")
    first = np.flatnonzero(np.diff(pair[:, 0], prepend=pair[0, 0] - 1))
    return float(np.maximum.reduceat(count, first).sum() / known.sum())


def _pairs(group: NDArray[np.int64]) -> int:
    size = np.bincount(group)
    return int((size * (size - 1) // 2).sum())


def _check(codes: NDArray[np.integer], product: NDArray[np.integer]) -> None:
    if codes.ndim != 2 or product.shape != (len(codes),):
        raise ValueError(f"expected codes (N, L) and one product a row, not {codes.shape} and {product.shape}")
