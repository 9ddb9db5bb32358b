"""Codes that are equally used: prices for encoding, and an exact assignment for a whole catalogue.

No code of K may hold more than `ceil(slack * N / K)` of N vectors. That is optimal transport with capacities, and its
dual is a price for each code: with the right prices, every vector taking the code of least squared distance plus price
balances by itself, and still each vector is encoded alone. The prices are those of entropic transport, found by
Sinkhorn's iterations for an upper bound (https://arxiv.org/abs/1306.0895; the bound makes a price nonnegative,
https://arxiv.org/abs/1412.5154) at a falling temperature. Rounding, ties and vectors that come later leave an excess,
so `assign_within` moves what is over a capacity: greedily, the vectors which lose least by it.

The papers behind this project say that the last level is balanced, not how; the capacities and prices are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

import numpy as np
from numpy.typing import NDArray

from quantizers.nearest import Nearest
from quantizers.parallel import in_blocks

_ROWS = 4096
_SCORES = 1 << 18


def capacity_of(items: int, size: int, slack: float) -> int:
    """The most of N items that one of K codes may hold.

    >>> capacity_of(1000, 256, 1.0)
    4
    """
    return max(1, ceil(slack * items / size - 1e-9))  # 1.1 * 100 / 10 is not 12


def soft_counts(
    x: NDArray[np.float32], centroids: NDArray[np.float32], prices: NDArray[np.float32], temperature: float
) -> NDArray[np.float64]:
    """(N, D) vectors, (K, D) centroids, (K,) prices -> (K,) how many vectors want each code.

    A vector wants each code in proportion to `exp(-(squared distance + price) / temperature)`.
    """
    size = len(centroids)
    offset = 0.5 * (np.einsum("kd,kd->k", centroids, centroids) + prices)
    block = max(64, _SCORES // size)

    def work(start: int, stop: int) -> NDArray[np.float64]:
        demand = np.zeros(size)
        for first in range(start, stop, block):
            score = x[first : min(first + block, stop)] @ centroids.T
            score -= offset
            score -= score.max(axis=1, keepdims=True)
            score *= np.float32(2 / temperature)
            np.exp(score, out=score)
            demand += (1 / score.sum(axis=1)) @ score
        return demand

    total = np.zeros(size)
    for demand in in_blocks(work, len(x), _ROWS):
        total += demand
    return total


def next_prices(
    prices: NDArray[np.float32], demand: NDArray[np.float64], bound: float, temperature: float
) -> NDArray[np.float32]:
    """(K,) prices, how many vectors want each code at them -> (K,) prices at which none is wanted over `bound` times.

    Never negative: a code wanted less often than it may be needs no discount.

    >>> next_prices(np.zeros(2, np.float32), np.array([np.e, 0.5]), bound=1, temperature=2).tolist()
    [2.0, 0.0]
    """
    step = temperature * np.log(np.maximum(demand, 1e-9) / bound)
    return np.maximum(0, prices + step).astype(np.float32)


def assign_within(
    capacity: int,
    rows: int,
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    centroids: NDArray[np.float32],
    prices: NDArray[np.float32],
) -> NDArray[np.int32]:
    """(N,) codes of `vectors(rows)`, (n,) row numbers to (n, D): least squared distance plus price, none over capacity.

    Where more vectors want a code than it holds, those stay whose second choice costs most more (the first of equals);
    the others choose again among the codes that are not full.

    Raises:
        ValueError: all codes together hold fewer vectors than there are.
    """
    size = len(centroids)
    if capacity * size < rows:
        raise ValueError(
            f"{rows} vectors do not fit {size} codes of at most {capacity} vectors: use more codes or a larger slack"
        )
    codes, margin = np.empty(rows, np.int32), np.empty(rows, np.float32)
    open_codes, unplaced = np.arange(size, dtype=np.int32), np.arange(rows)
    while len(unplaced):
        _choose(unplaced, vectors, centroids, prices, open_codes, codes, margin)
        count = np.bincount(codes, minlength=size)
        full = count >= capacity
        crowd = np.flatnonzero((count > capacity)[codes])
        crowd = crowd[np.lexsort((crowd, -margin[crowd], codes[crowd]))]
        crowd_codes = codes[crowd]
        rank = np.arange(len(crowd)) - np.searchsorted(crowd_codes, crowd_codes)
        unplaced = np.sort(crowd[rank >= capacity])
        open_codes = np.flatnonzero(~full).astype(np.int32)
    return codes


def _choose(
    rows: NDArray[np.int64],
    vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    centroids: NDArray[np.float32],
    prices: NDArray[np.float32],
    allowed: NDArray[np.int32],
    codes: NDArray[np.int32],
    margin: NDArray[np.float32],
) -> None:
    """Write code and margin of the rows, which choose among the allowed codes."""
    search = Nearest(centroids[allowed], prices[allowed])

    def work(start: int, stop: int) -> None:
        chosen = rows[start:stop]
        code, extra = search.codes_and_margins(vectors(chosen))
        codes[chosen], margin[chosen] = allowed[code], extra

    for _ in in_blocks(work, len(rows), _ROWS):
        pass
