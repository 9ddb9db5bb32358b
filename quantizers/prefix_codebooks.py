"""A level with a codebook for each of the codes before it, as the released code of OneSearch has it.

OneSearch (https://arxiv.org/abs/2509.03236) calls its last level balanced; what its code does is a k-means of its own
for every pair of first and second code ("type 1") or for every second code ("type 2"). A prefix here is either: any
whole number that says which codebook applies.

Ours: a prefix with at most K distinct vectors takes these themselves; one never seen while fitting has the codebook 0,
which is that of all vectors together.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from quantizers.kmeans import kmeans
from quantizers.nearest import nearest, nearest_of_own

_FEW = 1 << 14  # numbers to subtract: below that, measuring each pair beats a matrix product of the prefix alone


class PrefixCodebooks:
    """P + 1 codebooks in one array, found by the prefix.

    Attributes:
        prefixes: (P,) sorted.
        offsets: (P + 2,) codebook p + 1 is `centroids[offsets[p + 1] : offsets[p + 2]]` and belongs to `prefixes[p]`.
        centroids: (T, D).
    """

    def __init__(self, prefixes: NDArray[np.int64], offsets: NDArray[np.int64], centroids: NDArray[np.float32]) -> None:
        if len(offsets) != len(prefixes) + 2 or offsets[-1] != len(centroids) or (np.diff(offsets) < 1).any():
            raise ValueError(f"{len(prefixes)} prefixes, {len(offsets)} offsets, {len(centroids)} centroids do not fit")
        self.prefixes, self.offsets, self.centroids = prefixes, offsets, centroids

    @classmethod
    def fit(
        cls, x: NDArray[np.float32], prefix: NDArray[np.int64], shared: NDArray[np.float32], size: int,
        iterations: int, seed: int,
    ) -> Self:  # fmt: skip
        """(N, D) vectors, (N,) their prefixes, (k, D) the codebook for all others."""
        order = np.argsort(prefix, kind="stable")
        prefixes, first = np.unique(prefix[order], return_index=True)
        books = [shared]
        # a loop over prefixes, each a k-means of its own: once, while fitting
        for rows in np.split(order, first[1:]):
            books.append(kmeans(x[rows], size, iterations, seed))
        offsets = np.cumsum([0, *map(len, books)])
        return cls(prefixes, offsets.astype(np.int64), np.concatenate(books))

    def encode(self, x: NDArray[np.float32], prefix: NDArray[np.int64]) -> NDArray[np.int32]:
        """(N, D) vectors, (N,) prefixes -> (N,) the nearest centroid in the codebook of each."""
        book = self._book(prefix)
        first, count = self.offsets[book], np.diff(self.offsets)[book]
        codes = np.empty(len(x), np.int32)
        alone = np.bincount(book, minlength=len(self.offsets) - 1)[book] * count * x.shape[1] < _FEW
        few, many = np.flatnonzero(alone), np.flatnonzero(~alone)
        codes[few] = nearest_of_own(x[few], self.centroids, first[few], count[few])
        many = many[np.argsort(book[many], kind="stable")]
        for rows in np.split(many, np.flatnonzero(np.diff(book[many])) + 1) if len(many) else ():
            start = first[rows[0]]
            codes[rows] = nearest(x[rows], self.centroids[start : start + count[rows[0]]])
        return codes

    def counts(self, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) prefixes -> (N,) the number of centroids of each."""
        return np.diff(self.offsets)[self._book(prefix)]

    def decode(self, prefix: NDArray[np.int64], codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N,) prefixes and codes below their `counts` -> (N, D) centroids."""
        return self.centroids[self.offsets[self._book(prefix)] + codes]

    def _book(self, prefix: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) the codebook of each prefix, 0 where it has none of its own."""
        if not len(self.prefixes):
            return np.zeros(len(prefix), np.int64)
        place = np.minimum(np.searchsorted(self.prefixes, prefix), len(self.prefixes) - 1)
        return np.where(self.prefixes[place] == prefix, place + 1, 0)
