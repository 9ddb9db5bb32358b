"""What the codes of a catalogue mean: the mean vector of the items below every prefix, as a table.

Papers take the codebooks. Not every quantizer has some (FSQ), a codebook of one level may stand for something else
below each prefix, and a last level that makes semantic IDs unique has none; means exist for all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class Centroids:
    """Of N items with L-level semantic IDs.

    Attributes:
        index: over all items.
        means: L tensors (M_{d+1}, D), the mean vector of the items below each node of depth d + 1.
        nodes: (N, L) int64 the nodes of depth 1..L above each item.
    """

    index: PrefixIndex
    means: tuple[Tensor, ...]
    nodes: NDArray[np.int64]

    @classmethod
    def of(cls, codes: NDArray[np.integer], vectors: NDArray[np.float32]) -> Centroids:
        """Of items with these codes (N, L) and vectors (N, D)."""
        index = PrefixIndex.build(codes)
        below = index.mass(torch.ones(len(codes), dtype=torch.int64))
        sums = index.mass(torch.from_numpy(vectors).T)
        means = tuple((total / count).T.float().contiguous() for total, count in zip(sums, below, strict=True))
        path = index.nodes(torch.from_numpy(np.ascontiguousarray(codes, np.int64)))
        return cls(index, means, torch.stack(path, -1).numpy())

    def residuals(self) -> tuple[Tensor, NDArray[np.int64]]:
        """(M, D) what each node adds to the mean of the node above it, all depths below each other, as a residual
        quantizer's codebooks do; and (N, L) the rows of each item."""
        table = [self.means[0]]
        for depth in range(1, len(self.means)):
            above = torch.repeat_interleave(self.index.child[depth].diff())
            table.append(self.means[depth] - self.means[depth - 1][above])
        start = np.cumsum([0, *(len(level) for level in table[:-1])])
        return torch.cat(table), self.nodes + start

    def nearest(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """(n, D) vectors -> (n, L) codes: level by level, the child whose mean is nearest."""
        x = torch.from_numpy(vectors)
        node = torch.zeros(len(x), dtype=torch.int64)
        codes = []
        for depth, mean in enumerate(self.means):
            child, code, valid = self.index.children(depth, node)
            if depth == 0:  # the same children for all
                distance = mean.square().sum(-1) - 2 * x @ mean.T
                distance = distance.gather(-1, child)
            else:
                distance = (mean[child] - x[:, None]).square().sum(-1)
            best = distance.masked_fill(~valid, torch.inf).argmin(-1, keepdim=True)
            node = child.gather(-1, best)[:, 0]
            codes.append(code.gather(-1, best)[:, 0])
        return torch.stack(codes, -1).numpy()
