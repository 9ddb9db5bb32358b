"""Residual k-means: every level clusters what the levels before it left over.

Used for semantic IDs in OneSearch (https://arxiv.org/abs/2509.03236) and OneRec (https://arxiv.org/abs/2502.18965): for
l = 1..L, `c_l = argmin_k |r_{l-1} - C_l[k]|` and `r_l = r_{l-1} - C_l[c_l]`. The k-means is faiss's (Lloyd's).

Deviations: a level is fitted on at most `POINTS_PER_CENTROID` vectors a centroid, drawn once for all levels, so that
memory does not grow with the catalogue; a level with fewer distinct residuals than centroids takes these residuals
themselves and leaves its other codes unused. With another number of threads faiss may give other
centroids (it sums in another order), so it is held to one thread while it fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from quantizers.folder import read_config, read_tensors, write_folder
from quantizers.nearest import nearest

POINTS_PER_CENTROID: Final = 256
_ROWS: Final = 16_384


class ResidualKMeans:
    """L codebooks, each of the residuals of the ones before.

    Args:
        level_sizes: L numbers of centroids.
        normalize_residuals: scale the residuals of the second and later levels to unit length before they are
            clustered, so that a code says in which direction an item differs and not how much. What `decode` then
            needs, the mean length of the residuals of each level, is kept from the fit.
        iterations: the most iterations of Lloyd's algorithm a level.
        seed: of the sample and of the first centroids.

    Attributes:
        codebooks: L arrays (K_l, D) float32; the rows from `used_sizes[l]` on are zeros that no code points to.
        used_sizes: L numbers of centroids that exist.
        scales: (L,) float32 mean length of the residuals each level was given (1 without `normalize_residuals`).

    >>> points = np.array([[0, 0], [0, 1], [8, 0], [8, 1]], np.float32)
    >>> quantizer = ResidualKMeans(level_sizes=(2, 2)).fit(points)
    >>> bool((quantizer.decode(quantizer.encode(points)) == points).all())
    True
    """

    def __init__(
        self,
        level_sizes: Sequence[int] = (256, 256, 256),
        normalize_residuals: bool = False,
        iterations: int = 25,
        seed: int = 0,
    ) -> None:
        if not level_sizes or min(level_sizes) < 1:
            raise ValueError(f"level_sizes must be one or more positive numbers, not {level_sizes!r}")
        if iterations < 1:
            raise ValueError(f"iterations must be positive, not {iterations!r}")
        self.level_sizes = tuple(int(size) for size in level_sizes)
        self.normalize_residuals, self.iterations, self.seed = bool(normalize_residuals), int(iterations), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self.used_sizes: tuple[int, ...] = ()
        self.scales = np.ones(len(self.level_sizes), np.float32)

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn the codebooks from (N, D) vectors, which may be a memory map.

        Raises:
            ValueError: there is no vector, or one is not finite (its row is named).
        """
        residual = self._sample(x)
        codebooks, used, scales = [], [], np.ones(len(self.level_sizes), np.float32)
        for level, size in enumerate(self.level_sizes):
            if level and self.normalize_residuals:
                residual, length = _unit(residual)
                scales[level] = length.mean()
            centroids = self._cluster(residual, size, level)
            residual = residual - centroids[nearest(residual, centroids)]
            used.append(len(centroids))
            codebooks.append(np.concatenate([centroids, np.zeros((size - len(centroids), x.shape[1]), np.float32)]))
        self.codebooks, self.used_sizes, self.scales = codebooks, tuple(used), scales
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L) codes, level by level the nearest centroid, ties to the lowest code.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """
        width = self._width()
        _check_shape(x, width)
        codes = np.empty((len(x), len(self.level_sizes)), np.int32)
        for start, residual in _blocks(x):
            for level, (codebook, used) in enumerate(zip(self.codebooks, self.used_sizes, strict=True)):
                if level and self.normalize_residuals:
                    residual, _ = _unit(residual)
                code = nearest(residual, codebook[:used])
                codes[start : start + len(residual), level] = code
                residual = residual - codebook[code]
        return codes

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L levels to (N, D) vectors; fewer levels give a coarser vector.

        Raises:
            ValueError: not fitted, too many levels, or a code without a centroid.
        """
        vectors = np.zeros((len(codes), self._width()), np.float32)
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(self.level_sizes):
            raise ValueError(f"expected codes of shape (N, 1..{len(self.level_sizes)}), not {codes.shape}")
        scale = np.float32(1)
        for level in range(codes.shape[1]):
            code, used = codes[:, level], self.used_sizes[level]
            wrong = np.flatnonzero((code < 0) | (code >= used))
            if len(wrong):
                raise ValueError(
                    f"row {wrong[0]}: code {code[wrong[0]]} of level {level} has no centroid (0..{used - 1})"
                )
            scale = scale * self.scales[level]
            vectors += scale * self.codebooks[level][code]
        return vectors

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        self._width()
        config = {
            "class": "ResidualKMeans",
            "level_sizes": list(self.level_sizes),
            "normalize_residuals": self.normalize_residuals,
            "iterations": self.iterations,
            "seed": self.seed,
            "used_sizes": list(self.used_sizes),
        }
        tensors = {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}
        write_folder(Path(folder), config, {**tensors, "scales": self.scales})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        config, tensors = read_config(Path(folder)), read_tensors(Path(folder))
        try:
            settings = {key: config[key] for key in ("level_sizes", "normalize_residuals", "iterations", "seed")}
            quantizer = cls(**settings)
            quantizer.codebooks = [tensors[f"codebook_{level}"] for level in range(len(quantizer.level_sizes))]
            quantizer.scales = tensors["scales"]
            quantizer.used_sizes = tuple(int(used) for used in config["used_sizes"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: not a saved ResidualKMeans: {error}") from error
        if tuple(len(codebook) for codebook in quantizer.codebooks) != quantizer.level_sizes:
            raise ValueError(f"{folder}: config.json and model.safetensors are of different quantizers")
        return quantizer

    def _width(self) -> int:
        if not self.codebooks:
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return int(self.codebooks[0].shape[1])

    def _sample(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, D) the vectors to fit on: all, or as many as the largest level needs, in their order."""
        _check_shape(x, None)
        for _ in _blocks(x):
            pass  # every vector is checked, drawn or not: a broken one would get a code later
        most = POINTS_PER_CENTROID * max(self.level_sizes)
        if len(x) <= most:
            return np.array(x, np.float32)
        rows = np.sort(np.random.default_rng(self.seed).choice(len(x), most, replace=False))
        return np.asarray(x[rows], np.float32)

    def _cluster(self, residual: NDArray[np.float32], size: int, level: int) -> NDArray[np.float32]:
        """(k, D) centroids, k <= size."""
        few = np.unique(residual[: 4 * size], axis=0)
        if len(few) <= size and len(residual) > 4 * size:
            few = np.unique(residual, axis=0)
        if len(few) <= size:
            return few
        with _one_thread():
            kmeans = faiss.Kmeans(
                residual.shape[1],
                size,
                niter=self.iterations,
                seed=self.seed + level,
                min_points_per_centroid=1,  # silences a warning
                max_points_per_centroid=len(residual),  # the sample is drawn already
            )
            kmeans.train(np.ascontiguousarray(residual))
        return np.asarray(kmeans.centroids, np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _unit(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, D) rows at unit length (a zero row stays zero) and (N,) their lengths before."""
    length = np.linalg.norm(x, axis=1)
    return np.divide(x, length[:, None], out=np.zeros_like(x), where=length[:, None] > 0), length


def _check_shape(x: NDArray[np.floating], width: int | None) -> None:
    if x.ndim != 2 or (width is not None and x.shape[1] != width):
        raise ValueError(f"expected vectors of shape (N, {width or 'D'}), not {x.shape}")
    if width is None and 0 in x.shape:
        raise ValueError(f"there is nothing to fit on: vectors of shape {x.shape}")


def _blocks(x: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Start and rows of each block as float32, checked to be finite (so must be the sum of a row's squares)."""
    for start in range(0, len(x), _ROWS):
        block = np.asarray(x[start : start + _ROWS], np.float32)
        wrong = np.flatnonzero(~np.isfinite(np.einsum("nd,nd->n", block, block)))
        if len(wrong):
            raise ValueError(f"row {start + wrong[0]} of the vectors is not finite, or too large for float32")
        yield start, block
