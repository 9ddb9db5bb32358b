"""Residual k-means, if wanted with a balanced last level and a product quantizer of what is left: RQ-OPQ.

Used for semantic IDs in OneSearch (https://arxiv.org/abs/2509.03236) and OneRec (https://arxiv.org/abs/2502.18965): for
l = 1..L, `c_l = argmin_k |r_{l-1} - C_l[k]|` and `r_l = r_{l-1} - C_l[c_l]`. OneSearch has three levels of 4096, 1024
and 512 codes, the last of them balanced, and codes r_3 by an optimized product quantizer of two parts with 256 codes
each:

    ResidualKMeans((4096, 1024, 512), tail=(256, 256), balance="last")    # level_sizes (4096, 1024, 512, 256, 256)

Faithful: the residual levels, `balance="per_prefix"` and `"per_code"` (what the released code does: a codebook of its
own for every whole prefix, or for every code of the level before), the tail. Ours: `"last"` and `"all"`, true
capacities by prices (`quantizers/balance.py`); unseen prefixes (`quantizers/prefix_codebooks.py`).

Deviations: a level is fitted on at most `POINTS_PER_CENTROID` vectors a centroid (a balanced one on the whole sample),
drawn once for all levels, and the sample takes half a gigabyte or `LEAST_POINTS_PER_CENTROID` vectors a centroid, so
that memory does not grow with the catalogue. A level with fewer distinct residuals than centroids takes these residuals
themselves and leaves its other codes unused; so one vector alone gets the codes 0, 0, ... and is decoded exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Final, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from quantizers.balance import assign_within, capacity_of
from quantizers.folder import saved, write_folder
from quantizers.kmeans import balanced_kmeans, kmeans
from quantizers.nearest import Nearest
from quantizers.parallel import in_blocks
from quantizers.prefix_codebooks import PrefixCodebooks
from quantizers.product import fit_parts
from quantizers.rows import check_finite, check_shape

Balance = Literal["none", "last", "all", "per_prefix", "per_code"]

POINTS_PER_CENTROID: Final = 256
LEAST_POINTS_PER_CENTROID: Final = 64
SAMPLE_NUMBERS: Final = 1 << 27  # half a gigabyte in float32
_ROWS: Final = 4096
_PREFIX_TENSORS: Final = ("prefixes", "offsets", "centroids")
_SETTINGS: Final = ("tail", "balance", "slack", "normalize_residuals", "iterations", "seed")

log = logging.getLogger(__name__)


class ResidualKMeans:
    """L codebooks, each of the residuals of the ones before, and T for the parts of what they leave over.

    Args:
        level_sizes: L numbers of centroids.
        tail: T equal numbers of centroids, each of one part of the last residual, rotated and cut into T parts.
        balance: "none"; "last" or "all": no code of the last, or of any, of the L levels has more than
            `ceil(slack * N / K)` of N vectors, exactly with `assign` and nearly with `encode`; "per_prefix" or
            "per_code": the last of the L levels has a codebook for every prefix, or for every code of the level before.
        slack: of the capacities; 1 makes all codes equally frequent.
        normalize_residuals: scale the residuals of the second and later levels to unit length before they are
            clustered, so that a code says in which direction an item differs and not how much. What `decode` then
            needs, the mean length of the residuals of each level, is kept from the fit.
        iterations: the most iterations of Lloyd's algorithm a level.
        seed: of the sample and of the first centroids.

    Attributes:
        level_sizes: L + T numbers, those of the tail last.
        codebooks: L + T arrays (K_l, D) float32; the rows from `used_sizes[l]` on are zeros that no code points to.
        used_sizes: L + T numbers of centroids that exist.
        prices: L + T arrays (K_l,) float32, added to squared distances; not zero where a level is balanced.
        scales: (L + T,) float32 mean length of the residuals each level was given (1 without `normalize_residuals`).
        prefix_codebooks: those of "per_prefix" and "per_code"; `codebooks` then holds what an unseen prefix uses.

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
        *,
        tail: Sequence[int] = (),
        balance: Balance = "none",
        slack: float = 1.1,
    ) -> None:
        if not level_sizes or min(level_sizes) < 1:
            raise ValueError(f"level_sizes must be one or more positive numbers, not {level_sizes!r}")
        if tail and (min(tail) < 1 or len(set(tail)) > 1):
            raise ValueError(f"tail must be equal positive numbers, such as (256, 256), not {tail!r}")
        if balance not in get_args(Balance):
            raise ValueError(f"balance must be one of {', '.join(get_args(Balance))}, not {balance!r}")
        if balance.startswith("per") and len(level_sizes) < 2:
            raise ValueError(f"balance {balance!r} needs two levels or more, not {level_sizes!r}")
        if not slack >= 1:
            raise ValueError(f"slack must be 1 or more, not {slack!r}: the codes must hold all vectors")
        if iterations < 1:
            raise ValueError(f"iterations must be positive, not {iterations!r}")
        if balance == "per_prefix" and prod(level_sizes[:-1]) >= 1 << 62:
            raise ValueError(f"level_sizes {level_sizes!r} have too many prefixes for balance 'per_prefix'")
        self.tail = tuple(int(size) for size in tail)
        self.level_sizes = tuple(int(size) for size in level_sizes) + self.tail
        self.balance: Balance = balance
        self.slack, self.normalize_residuals = float(slack), bool(normalize_residuals)
        self.iterations, self.seed = int(iterations), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self.prices: list[NDArray[np.float32]] = []
        self.used_sizes: tuple[int, ...] = ()
        self.scales = np.ones(len(self.level_sizes), np.float32)
        self.prefix_codebooks: PrefixCodebooks | None = None

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn the codebooks from (N, D) vectors, which may be a memory map; a level half unused is warned about.

        Raises:
            ValueError: there is no vector, or one is not finite (its row is named).
        """
        check_shape(x, None)
        for _ in in_blocks(lambda start, stop: _read(x, slice(start, stop)) is None, len(x), _ROWS):
            pass  # every vector is checked, drawn or not: a broken one would get a code later
        residual = self._sample(x)
        codes = np.zeros((len(residual), len(self.level_sizes)), np.int32)
        self.codebooks, self.prices, self.used_sizes, self.prefix_codebooks = [], [], (), None
        self.scales = np.ones(len(self.level_sizes), np.float32)
        for level, size in enumerate(self.level_sizes[: self._levels]):
            self._advance_all(residual, codes, level)
            seed = self.seed + level
            if self._balanced(level):
                self._keep(*balanced_kmeans(residual, size, self.slack, self.iterations, seed))
            else:
                self._keep(kmeans(self._drawn(residual, size, seed), size, self.iterations, seed))
            if self._own(level):
                prefix, shared = self._prefix(codes, level), self.codebooks[level][: self.used_sizes[level]]
                self.prefix_codebooks = PrefixCodebooks.fit(residual, prefix, shared, size, self.iterations, seed)
            self._choose_all(residual, codes, level)
        if self.tail:
            self._advance_all(residual, codes, self._levels)
            size, seed = self.tail[0], self.seed + self._levels
            drawn = self._drawn(residual, size, seed)
            for part, book in enumerate(fit_parts(drawn, len(self.tail), size, self.iterations, seed)):
                self._keep(*book)
                self._choose_all(residual, codes, self._levels + part)
        for level, size in enumerate(self.level_sizes):
            used = len(np.unique(codes[:, level]))
            if 2 * used < size:
                log.warning("level %d uses %d of its %d codes for %d vectors", level, used, size, len(codes))
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L + T) codes, level by level the nearest centroid, ties to the lowest code.

        Each vector is coded by itself; on a balanced level by the least squared distance plus price.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """
        check_shape(x, self._width())
        codes, searches = np.empty((len(x), len(self.level_sizes)), np.int32), self._searches()

        def work(start: int, stop: int) -> None:
            self._encode_from(0, _read(x, slice(start, stop)), codes[start:stop], searches)

        for _ in in_blocks(work, len(x), _ROWS):
            pass
        return codes

    def assign(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) a whole catalogue to (N, L + T) codes, no code of a balanced level over its capacity.

        As `encode`, but where more than `ceil(slack * N / K)` vectors want a code, some take another one: here a
        vector's codes depend on the others. (Of a level with fewer centroids than codes, K is their number.)

        Raises:
            ValueError: as `encode`.
        """
        codes, searches = self.encode(x), self._searches()
        for level in filter(self._balanced, range(self._levels)):
            used = self.used_sizes[level]

            def vectors(rows: NDArray[np.int64], level: int = level) -> NDArray[np.float32]:
                residual, code = _read(x, rows), codes[rows]
                for above in range(level + 1):
                    self._advance(residual, code, above)
                return residual

            def rest(start: int, stop: int, level: int = level) -> None:
                residual = vectors(np.arange(start, stop), level)
                self._encode_from(level + 1, residual, codes[start:stop], searches)

            centroids, prices = self.codebooks[level][:used], self.prices[level][:used]
            codes[:, level] = assign_within(capacity_of(len(x), used, self.slack), len(x), vectors, centroids, prices)
            for _ in in_blocks(rest, len(x), _ROWS):
                pass
        return codes

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L + T levels to (N, D) vectors; fewer levels give a coarser vector.

        Raises:
            ValueError: not fitted, too many levels, or a code without a centroid.
        """
        vectors = np.zeros((len(codes), self._width()), np.float32)
        if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(self.level_sizes):
            raise ValueError(f"expected codes of shape (N, 1..{len(self.level_sizes)}), not {codes.shape}")
        scale = np.float32(1)
        for level in range(codes.shape[1]):
            code, own = codes[:, level], self._own(level) and self.prefix_codebooks
            used = own.counts(self._prefix(codes, level)) if own else np.full(len(code), self.used_sizes[level])
            wrong = np.flatnonzero((code < 0) | (code >= used))
            if len(wrong):
                row = wrong[0]
                raise ValueError(f"row {row}: code {code[row]} of level {level} has no centroid (0..{used[row] - 1})")
            scale = scale * self.scales[level]
            vectors += scale * self._centroids_of(codes, level)
        return vectors

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        self._width()
        config = {
            "class": "ResidualKMeans",
            "level_sizes": list(self.level_sizes[: self._levels]),
            **{name: getattr(self, name) for name in _SETTINGS},
            "used_sizes": list(self.used_sizes),
        }
        tensors = {f"codebook_{level}": codebook for level, codebook in enumerate(self.codebooks)}
        tensors |= {f"prices_{level}": prices for level, prices in enumerate(self.prices)}
        if self.prefix_codebooks:
            tensors |= {f"prefix_{name}": getattr(self.prefix_codebooks, name) for name in _PREFIX_TENSORS}
        write_folder(Path(folder), config, {**tensors, "scales": self.scales})

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        with saved(folder, "ResidualKMeans") as (config, tensors):
            quantizer = cls(config["level_sizes"], **{name: config[name] for name in _SETTINGS})
            levels = range(len(quantizer.level_sizes))
            quantizer.codebooks = [tensors[f"codebook_{level}"] for level in levels]
            quantizer.prices = [tensors[f"prices_{level}"] for level in levels]
            quantizer.scales = tensors["scales"]
            quantizer.used_sizes = tuple(int(used) for used in config["used_sizes"])
            if quantizer._own(quantizer._levels - 1):
                quantizer.prefix_codebooks = PrefixCodebooks(
                    **{name: tensors[f"prefix_{name}"] for name in _PREFIX_TENSORS}
                )
        found = [tuple(map(len, books)) for books in (quantizer.codebooks, quantizer.prices)]
        if found != [quantizer.level_sizes] * 2 or len(quantizer.used_sizes) != len(quantizer.level_sizes):
            raise ValueError(f"{folder}: config.json and model.safetensors are of different quantizers")
        return quantizer

    @property
    def _levels(self) -> int:
        """L, the levels before the tail."""
        return len(self.level_sizes) - len(self.tail)

    def _balanced(self, level: int) -> bool:
        return self.balance == "all" or (self.balance == "last" and level == self._levels - 1)

    def _own(self, level: int) -> bool:
        """Whether the level has a codebook for each prefix."""
        return self.balance in ("per_prefix", "per_code") and level == self._levels - 1

    def _width(self) -> int:
        if len(self.codebooks) < len(self.level_sizes):
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return int(self.codebooks[0].shape[1])

    def _sample(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """(n, D) a copy of the vectors to fit on: all, or as many as the largest level needs, in their order."""
        largest = max(self.level_sizes)
        fitting = max(SAMPLE_NUMBERS // x.shape[1], LEAST_POINTS_PER_CENTROID * largest)
        most = min(len(x), POINTS_PER_CENTROID * largest, fitting)
        rows = np.sort(np.random.default_rng(self.seed).choice(len(x), most, replace=False))
        sample = np.empty((most, x.shape[1]), np.float32)
        for start in range(0, most, _ROWS):
            sample[start : start + _ROWS] = x[rows[start : start + _ROWS]]
        return sample

    def _drawn(self, residual: NDArray[np.float32], size: int, seed: int) -> NDArray[np.float32]:
        """(n, D) the part of the sample that a level of this size is fitted on."""
        most = POINTS_PER_CENTROID * size
        if len(residual) <= most:
            return residual
        return residual[np.sort(np.random.default_rng(seed).choice(len(residual), most, replace=False))]

    def _keep(self, centroids: NDArray[np.float32], prices: NDArray[np.float32] | None = None) -> None:
        """The centroids of the next level, filled up with zeros."""
        used, size = len(centroids), self.level_sizes[len(self.codebooks)]
        codebook, price = np.zeros((size, centroids.shape[1]), np.float32), np.zeros(size, np.float32)
        codebook[:used] = centroids
        if prices is not None:
            price[:used] = prices
        self.codebooks.append(codebook)
        self.prices.append(price)
        self.used_sizes += (used,)

    def _prefix(self, codes: NDArray[np.integer], level: int) -> NDArray[np.int64]:
        """(N,) what the codes before the level say about which codebook applies."""
        if self.balance == "per_code":
            return codes[:, level - 1].astype(np.int64)
        return np.ravel_multi_index(tuple(codes[:, :level].T), self.level_sizes[:level]).astype(np.int64)

    def _centroids_of(self, codes: NDArray[np.integer], level: int) -> NDArray[np.float32]:
        """(N, D) what the codes of a level stand for."""
        if self._own(level) and self.prefix_codebooks:
            return self.prefix_codebooks.decode(self._prefix(codes, level), codes[:, level])
        return self.codebooks[level][codes[:, level]]

    def _advance(self, residual: NDArray[np.float32], codes: NDArray[np.int32], level: int) -> float:
        """Make the (N, D) residual of the level before that of this one, in place; the sum of its lengths.

        All parts of the tail have the same residual.
        """
        if level == 0 or level > self._levels:
            return 0.0
        residual -= self._centroids_of(codes, level - 1)
        if not self.normalize_residuals:
            return 0.0
        length = np.linalg.norm(residual, axis=1)
        np.divide(residual, length[:, None], out=residual, where=length[:, None] > 0)
        return float(length.sum(dtype=np.float64))

    def _searches(self) -> list[Nearest]:
        """Of each level that there is by now."""
        books = zip(self.codebooks, self.prices, self.used_sizes, strict=True)
        return [Nearest(codebook[:used], prices[:used]) for codebook, prices, used in books]

    def _choose(self, residual: NDArray[np.float32], codes: NDArray[np.int32], level: int, search: Nearest) -> None:
        """Write the codes of a level."""
        if self._own(level) and self.prefix_codebooks:
            codes[:, level] = self.prefix_codebooks.encode(residual, self._prefix(codes, level))
        else:
            codes[:, level] = search.codes(residual)

    def _encode_from(
        self, first: int, residual: NDArray[np.float32], codes: NDArray[np.int32], searches: list[Nearest]
    ) -> None:
        """Write the codes of `first` and later levels; the residual is that of the level before, and is overwritten."""
        for level in range(first, len(self.level_sizes)):
            self._advance(residual, codes, level)
            self._choose(residual, codes, level, searches[level])

    def _advance_all(self, residual: NDArray[np.float32], codes: NDArray[np.int32], level: int) -> None:
        """`_advance` in blocks while fitting, with the scale of the level."""

        def work(start: int, stop: int) -> float:
            return self._advance(residual[start:stop], codes[start:stop], level)

        length = sum(in_blocks(work, len(residual), _ROWS))
        if level and self.normalize_residuals:
            self.scales[level] = length / len(residual)

    def _choose_all(self, residual: NDArray[np.float32], codes: NDArray[np.int32], level: int) -> None:
        """`_choose` in blocks while fitting."""
        search = self._searches()[level]

        def work(start: int, stop: int) -> None:
            self._choose(residual[start:stop], codes[start:stop], level, search)

        for _ in in_blocks(work, len(residual), _ROWS):
            pass


def _read(x: NDArray[np.floating], rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
    """(n, D) a copy of the rows as float32, checked to be finite."""
    block = np.array(x[rows], np.float32)
    check_finite(block, range(rows.start, rows.start + len(block)) if isinstance(rows, slice) else rows)
    return block
