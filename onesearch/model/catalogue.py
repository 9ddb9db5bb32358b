"""What a generator knows of the items it may answer with: bound after construction, changed without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class Catalogue:
    """The prefix index, and what lies below each of its nodes; the d-th tensor is about the nodes of depth d + 1.

    Attributes:
        log_mass: L tensors (S, M_{d+1}, P), log(1 + count) for S snapshots and P kinds of popularity.
        content: L tensors (M_{d+1}, V), mean vector of the items.
        trigrams: L tensors (M_{d+1}, T / 8) uint8, one bit for each of T hashed character trigrams, set where any item
            has it.
        first_trigrams: (T, M_1) float, the bits of the first level unpacked.
    """

    index: PrefixIndex
    log_mass: tuple[Tensor, ...]
    content: tuple[Tensor, ...]
    trigrams: tuple[Tensor, ...]
    first_trigrams: Tensor

    @classmethod
    def build(cls, index: PrefixIndex, counts: Sequence[Tensor], vectors: Tensor, bits: Tensor) -> Catalogue:
        """Sum what is known of the items below every prefix.

        Args:
            counts: P tensors (S, N) of popularity. vectors: (N, V). bits: (N, T / 8) uint8.
        """
        masses = [index.mass(one) for one in counts]
        below = index.mass(torch.ones(len(index), dtype=torch.int64))
        ordered = bits[index.items].numpy()
        trigrams = tuple(
            torch.from_numpy(np.bitwise_or.reduceat(ordered, edges[:-1].numpy())) for edges in index.below[1:]
        )
        return cls(
            index=index,
            log_mass=tuple(torch.stack(level, -1).log1p().float() for level in zip(*masses, strict=True)),
            content=tuple(
                (total / count).T.float().contiguous()
                for total, count in zip(index.mass(vectors.T), below, strict=True)
            ),
            trigrams=trigrams,
            first_trigrams=torch.from_numpy(np.unpackbits(trigrams[0].numpy(), axis=1, bitorder="little")).T.float(),
        )

    def to(self, device: torch.device | str) -> Catalogue:
        """The same catalogue on another device."""
        return Catalogue(
            self.index.to(device),
            tuple(t.to(device) for t in self.log_mass),
            tuple(t.to(device) for t in self.content),
            tuple(t.to(device) for t in self.trigrams),
            self.first_trigrams.to(device),
        )

    def covered(self, depth: int, child: Tensor, valid: Tensor, trigrams: Tensor, weights: Tensor) -> Tensor:
        """How much of the query's trigram weight some item below each child has: an upper bound for every one of them.

        Args:
            child, valid: (B, K, C) as `PrefixIndex.children` returns them for prefixes of this depth.
            trigrams, weights: (B, G) the query's trigrams and their weights; 0 weight pads.

        Returns:
            (B, K, C) from 0 to 1, 0 in empty places.
        """
        if depth == 0:  # all prefixes have the same children: one weighted sum of columns a request
            bound = F.embedding_bag(trigrams, self.first_trigrams, per_sample_weights=weights, mode="sum")
            return bound.unsqueeze(1).expand(child.shape)
        request, beam, place = valid.nonzero(as_tuple=True)
        asked = trigrams[request]
        byte = self.trigrams[depth][child[request, beam, place].unsqueeze(-1), asked >> 3]
        bit = (byte >> (asked & 7).to(torch.uint8)) & 1
        bound = torch.zeros(child.shape, dtype=weights.dtype, device=child.device)
        bound[request, beam, place] = (weights[request] * bit).sum(-1)
        return bound
