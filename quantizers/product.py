"""Optimized product quantization: rotate, cut into parts, one codebook a part (https://arxiv.org/abs/1311.4055).

Only the rotation is faiss's (`OPQMatrix`), learned together with trial codebooks; the codebooks are then k-means of the
rotated parts. No inverted file, no coarse centroid: the vectors are quantized as they are.

The rotation is orthonormal, so the centroid of one part can be turned back into the space of the vectors, and the
nearest centroid of a rotated part is the nearest of the turned back ones. So a part is a codebook (K, D) like any
other: nothing is rotated when encoding, and the codes of the parts decode to the sum of their centroids, which is the
nearest of all their sums. A width that the parts do not divide is padded with zeros; what a centroid then says about
the padding cannot be changed by any vector and stays as its price, and "nearest" holds in the padded space.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from quantizers.kmeans import kmeans
from quantizers.parallel import one_openmp_thread

ROTATION_VECTORS = 65_536


def fit_parts(
    x: NDArray[np.float32], parts: int, size: int, iterations: int, seed: int
) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(N, D) vectors -> for each part (k, D) centroids and (k,) prices, k <= size, whose sums come near the vectors."""
    width = x.shape[1]
    rotation = _rotation(x, parts, size, iterations, seed)
    books = []
    for part, rows in enumerate(np.split(rotation, parts)):
        centroids = kmeans(x @ rows[:, :width].T, size, iterations, seed + part) @ rows
        prices = np.square(centroids[:, width:]).sum(axis=1)
        books.append((np.ascontiguousarray(centroids[:, :width]), prices))
    return books


def _rotation(x: NDArray[np.float32], parts: int, size: int, iterations: int, seed: int) -> NDArray[np.float32]:
    """(W, W) orthonormal, W = D rounded up to a multiple of the parts.

    The identity for fewer vectors than trial codes or than dimensions: faiss needs as many.
    """
    rows, width = x.shape
    padded = -(-width // parts) * parts
    bits = min(max(1, round(np.log2(size))), 8)  # of the trial codebooks
    if rows < max(1 << bits, padded):
        return np.eye(padded, dtype=np.float32)
    if rows > ROTATION_VECTORS:
        x = x[np.sort(np.random.default_rng(seed).choice(rows, ROTATION_VECTORS, replace=False))]
    sample = np.zeros((len(x), padded), np.float32)
    sample[:, :width] = x
    opq, trial = faiss.OPQMatrix(padded, parts, padded), faiss.ProductQuantizer(padded, parts, bits)
    trial.cp.min_points_per_centroid = 1  # silences a warning
    opq.pq, opq.niter = trial, iterations
    opq.max_train_points = len(sample)
    with one_openmp_thread():
        opq.train(sample)
    return faiss.vector_to_array(opq.A).reshape(padded, padded)
