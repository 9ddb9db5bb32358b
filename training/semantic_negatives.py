"""Negatives by semantic ID: near ones share the first level with the right item, far ones do not.

ESANS (https://arxiv.org/abs/2502.16077). Faithful: two levels of residual clusters; far negatives come from another
first-level cluster, drawn with probability proportional to `exp(-distance)` of the two centroids, near ones from the
same first-level and another second-level cluster; new negatives are mixed from two far ones, and from the right item
and a near one. Deviation: shares of the mixture are drawn from [0, 1), not beyond, so that none passes the right item.
Ours: the clusters are made of the frozen vectors, because the run's semantic IDs come after the alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from quantizers.residual_kmeans import ResidualKMeans


@dataclass(frozen=True)
class SemanticNegatives:
    """N items in clusters of clusters.

    Attributes:
        codes: (N, 2) first- and second-level cluster of each item.
        nearness: (K, K) chance of each other cluster of the first level, rows sum to 1; zero for empty clusters.
    """

    codes: NDArray[np.int32]
    nearness: NDArray[np.float64]

    @classmethod
    def fit(cls, vectors: NDArray[np.floating], clusters: Sequence[int], seed: int) -> Self:
        """Cluster (N, D) vectors into `clusters`, a size for each of the two levels."""
        first, second = clusters
        quantizer = ResidualKMeans((first, second), seed=seed).fit(np.unique(vectors, axis=0))
        codes = quantizer.encode(vectors)
        centroids = quantizer.codebooks[0].astype(np.float64)
        distance = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
        filled = np.bincount(codes[:, 0], minlength=first) > 0
        chance = np.exp(-distance) * filled * ~np.eye(first, dtype=bool)
        total = chance.sum(axis=1, keepdims=True)
        return cls(codes, np.divide(chance, total, out=np.zeros_like(chance), where=total > 0))

    def draw(
        self, items: NDArray[np.int64], far: int, near: int, random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(P, far) and (P, near) items for (P,) right ones; -1 where a cluster has no neighbour."""
        key = self.codes[:, 0].astype(np.int64) * (int(self.codes[:, 1].max()) + 1) + self.codes[:, 1]
        order = np.argsort(key, kind="stable")  # items cluster by cluster
        levels = np.arange(len(self.nearness) + 1)
        edges = np.searchsorted(self.codes[order, 0], levels)  # (K + 1,) where each first-level cluster begins
        own = self.codes[items, 0]

        cumulative = np.cumsum(self.nearness, axis=1)
        aim = own[:, None] + random.random((len(items), far)) * cumulative[own, -1:]
        cluster = np.searchsorted((cumulative + levels[:-1, None]).ravel(), aim, side="right") - own[:, None] * len(
            self.nearness
        )
        cluster = cluster.clip(0, len(self.nearness) - 1)
        size = edges[cluster + 1] - edges[cluster]
        place = edges[cluster] + (random.random(cluster.shape) * size).astype(np.int64)
        found_far = np.where(cumulative[own, -1:] > 0, order[place.clip(max=len(order) - 1)], -1)

        start, end = edges[own], edges[own + 1]
        inner_start = np.searchsorted(key[order], key[items], side="left")
        inner_end = np.searchsorted(key[order], key[items], side="right")
        others = (end - start) - (inner_end - inner_start)  # items of the first-level cluster outside the second's
        place = start[:, None] + (random.random((len(items), near)) * others[:, None]).astype(np.int64)
        place += np.where(place >= inner_start[:, None], (inner_end - inner_start)[:, None], 0)
        found_near = np.where(others[:, None] > 0, order[place.clip(max=len(order) - 1)], -1)
        return found_far, found_near
