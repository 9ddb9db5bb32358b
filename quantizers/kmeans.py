"""Lloyd's k-means in memory, bit for bit the same on any number of threads.

faiss sums in another order when it has another number of threads; here the assignment is `nearest`, and the sums are
taken block by block in a fixed order (`quantizers/parallel.py`), in float64 across blocks. The first centroids are
drawn from the vectors without replacement. A centroid that loses all its vectors starts anew at a vector drawn in
proportion to its squared distance from its own centroid (the rule of k-means++,
https://dl.acm.org/doi/10.5555/1283383.1283494; faiss splits the fullest cluster instead, which cannot help where that
is one vector many times). The iterations end early when no vector changes its centroid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

from quantizers.balance import assign_within, capacity_of, next_prices, soft_counts
from quantizers.nearest import Nearest
from quantizers.parallel import in_blocks

ROWS = 16_384
_SOFTEST, _HARDEST = 0.1, 0.005  # shares of the variance before, and of that left by the centroids
_SETTLING = 20  # passes that move prices only, once the centroids rest


def kmeans(x: NDArray[np.float32], size: int, iterations: int = 25, seed: int = 0) -> NDArray[np.float32]:
    """(N, D) vectors -> (k, D) centroids; k < size when there are fewer distinct vectors: these themselves."""
    few = _distinct(x, size)
    if few is not None:
        return few
    rng = np.random.default_rng(seed)
    centroids = x[np.sort(rng.choice(len(x), size, replace=False))]
    codes = np.full(len(x), -1, np.int32)
    for _ in range(iterations):
        if not _step(x, centroids, codes, rng):
            break
    return centroids


def balanced_kmeans(
    x: NDArray[np.float32], size: int, slack: float, iterations: int = 25, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, D) vectors -> (k, D) centroids and (k,) prices with which codes are (nearly) equally used.

    Lloyd's iterations in which no centroid is given more vectors than its capacity, while prices follow demand
    (`quantizers/balance.py`) at a falling temperature. The prices of fewer distinct vectors than `size` are zero.
    """
    few = _distinct(x, size)
    if few is not None:
        return few, np.zeros(len(few), np.float32)
    rng = np.random.default_rng(seed)
    centroids = x[np.sort(rng.choice(len(x), size, replace=False))]
    prices, capacity = np.zeros(size, np.float32), capacity_of(len(x), size, slack)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)[None]
    whole = spread = float(_distances(x, mean, np.zeros(len(x), np.int32)).mean())
    share = np.linspace(0, 1, iterations + _SETTLING)
    for step in range(iterations + _SETTLING):
        if step < iterations:
            codes = assign_within(capacity, len(x), x.__getitem__, centroids, prices)
            _step(x, centroids, codes, rng, choose=False)
            spread = max(float(_distances(x, centroids, codes).mean()), 1e-6 * whole)
        temperature = (_SOFTEST * whole) ** (1 - share[step]) * (_HARDEST * spread) ** share[step]
        demand = soft_counts(x, centroids, prices, temperature)
        prices = next_prices(prices, demand, slack * len(x) / size, temperature)
    return centroids, prices


def _step(
    x: NDArray[np.float32],
    centroids: NDArray[np.float32],
    codes: NDArray[np.int32],
    rng: np.random.Generator,
    choose: bool = True,
) -> bool:
    """One iteration of Lloyd's, in place of `centroids` and (if they are to `choose`) `codes`; whether any changed."""
    size, width = centroids.shape
    search = Nearest(centroids)

    def work(start: int, stop: int) -> tuple[bool, NDArray[np.int64], NDArray[np.float32]]:
        code = search.codes(x[start:stop]) if choose else codes[start:stop]
        moved = not choose or bool((code != codes[start:stop]).any())
        codes[start:stop] = code
        # one column a vector, with a 1 in the row of its code: the product sums the vectors of each code
        ones = np.ones(stop - start, np.float32)
        members = csc_matrix((ones, code, np.arange(stop - start + 1)), shape=(size, stop - start))
        return moved, np.bincount(code, minlength=size), members @ x[start:stop]

    moved, count, total = False, np.zeros(size, np.int64), np.zeros((size, width))
    for block_moved, block_count, block_total in in_blocks(work, len(x), ROWS):
        moved |= block_moved
        count += block_count
        total += block_total
    if not moved:
        return False
    held = count > 0
    empty = np.flatnonzero(~held)
    if len(empty):
        distance = _distances(x, centroids, codes)
        if np.count_nonzero(distance) >= len(empty):
            centroids[empty] = x[rng.choice(len(x), len(empty), replace=False, p=distance / distance.sum())]
    centroids[held] = total[held] / count[held, None]
    return True


def _distances(x: NDArray[np.float32], centroids: NDArray[np.float32], codes: NDArray[np.int32]) -> NDArray[np.float64]:
    """(N,) squared distance of each vector from the centroid of its code."""
    distance = np.empty(len(x))

    def work(start: int, stop: int) -> None:
        rest = x[start:stop] - centroids[codes[start:stop]]
        distance[start:stop] = np.einsum("nd,nd->n", rest, rest)

    for _ in in_blocks(work, len(x), ROWS):
        pass
    return distance


def _distinct(x: NDArray[np.float32], size: int) -> NDArray[np.float32] | None:
    """(k, D) the distinct vectors, if they are at most `size`."""
    few = np.unique(x[: 4 * size], axis=0)
    if len(few) <= size and len(x) > 4 * size:
        few = np.unique(x, axis=0)
    return few if len(few) <= size else None
