"""What a generator knows of the items it may answer with: bound after construction, changed without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onesearch.corpus.offers import Offers
from onesearch.model.offered import Level, offered_below
from onesearch.prefix import PrefixIndex

AHEAD = 2**13
"""A first code is chosen with a look at so many nodes further down at most."""


@dataclass(frozen=True)
class Catalogue:
    """The prefix index, and what lies below each of its nodes; the d-th tensor is about the nodes of depth d + 1.

    Attributes:
        log_mass: L tensors (S, M_{d+1}, P), log(1 + count) for S snapshots and P kinds of popularity.
        content: L tensors (M_{d+1}, V), mean vector of the items.
        terms: L tensors (M_{d+1}, T / 8) uint8, one bit for each of T hashed terms, set where any item
            has it.
        ahead: d of the nodes that the choice of a first code looks ahead to: the deepest with at most `AHEAD` nodes.
        ahead_terms: (R + 1, M_{d+1}) float, the bits of these nodes unpacked for the R terms that any of them has.
        ahead_rows: (T,) int64 row of each term in it; R, a row of zeros, for those that none has.
        ahead_first: (M_{d+1},) int64 the node of depth 1 above each.
        ahead_log_mass: P tensors (S, M_{d+1}), their `log_mass`.
        offered: L levels, which share of the items is on offer where and when; none where nothing is known of offers.
    """

    index: PrefixIndex
    log_mass: tuple[Tensor, ...]
    content: tuple[Tensor, ...]
    terms: tuple[Tensor, ...]
    ahead: int
    ahead_terms: Tensor
    ahead_rows: Tensor
    ahead_first: Tensor
    ahead_log_mass: tuple[Tensor, ...]
    offered: tuple[Level, ...] = ()

    @classmethod
    def build(
        cls,
        index: PrefixIndex,
        counts: Sequence[Tensor],
        vectors: Tensor,
        bits: Tensor,
        offers: Offers | None = None,
    ) -> Catalogue:
        """Sum what is known of the items below every prefix.

        The index may hold a part of the items that something is known of, such as the snapshot of a `LiveIndex`.

        Args:
            counts: P tensors (S, M) of popularity. vectors: (M, V). bits: (M, T / 8) uint8; each by item index, M above
                the largest in the index.
        """
        masses = [index.mass(one) for one in counts]
        terms, content = _terms_below(index, bits), _means_below(index, vectors)
        ahead = max(depth for depth, bit in enumerate(terms) if depth == 0 or len(bit) <= AHEAD)
        bits_ahead = np.unpackbits(terms[ahead].numpy(), axis=1, bitorder="little").T
        known = np.flatnonzero(bits_ahead.any(1))
        rows = np.full(len(bits_ahead), len(known), np.int64)
        rows[known] = np.arange(len(known))
        first = torch.searchsorted(index.below[1], index.below[ahead + 1][:-1], right=True) - 1
        log_mass = tuple(torch.stack(level, -1).log1p().float() for level in zip(*masses, strict=True))
        return cls(
            index=index,
            log_mass=log_mass,
            content=content,
            terms=terms,
            ahead=ahead,
            ahead_terms=F.pad(torch.from_numpy(bits_ahead[known]).float(), (0, 0, 0, 1)),
            ahead_rows=torch.from_numpy(rows),
            ahead_first=first,
            ahead_log_mass=tuple(one.contiguous() for one in log_mass[ahead].unbind(-1)),
            offered=() if offers is None else offered_below(index, offers),
        )

    def to(self, device: torch.device | str) -> Catalogue:
        """The same catalogue on another device."""
        return Catalogue(
            self.index.to(device),
            tuple(t.to(device) for t in self.log_mass),
            tuple(t.to(device) for t in self.content),
            tuple(t.to(device) for t in self.terms),
            self.ahead,
            self.ahead_terms.to(device),
            self.ahead_rows.to(device),
            self.ahead_first.to(device),
            tuple(t.to(device) for t in self.ahead_log_mass),
            tuple(level.to(device) for level in self.offered),
        )

    def covered(self, depth: int, node: Tensor, terms: Tensor, weights: Tensor) -> Tensor:
        """How much of a query's weight some item below a node has: an upper bound for every one of them.

        Args:
            node: (n,) nodes of depth `depth + 1`.
            terms, weights: (n, G) the terms of the query that each is looked at for, and their weights; 0 weight pads.

        Returns:
            (n,) from 0 to 1.
        """
        byte = self.terms[depth][node.unsqueeze(-1), terms >> 3]
        bit = (byte >> (terms & 7).to(torch.uint8)) & 1
        return (weights * bit).sum(-1)

    def covered_ahead(self, terms: Tensor, weights: Tensor) -> Tensor:
        """(B, M_{ahead+1}) the same of every node that the first choice looks ahead to."""
        rows = self.ahead_rows[terms]
        return F.embedding_bag(rows, self.ahead_terms, per_sample_weights=weights, mode="sum")


def _terms_below(index: PrefixIndex, bits: Tensor) -> tuple[Tensor, ...]:
    """L tensors (M_{d+1}, T / 8): of bits (M, T / 8), those that any item below a node has."""
    words = next(kind for kind in (np.uint64, np.uint32, np.uint16, np.uint8) if bits.shape[1] % kind().nbytes == 0)
    found = [bits[index.items].numpy().view(words)]
    for edges in (index.below[-1], *index.child[:0:-1]):  # leaves of their items, then prefixes of their children
        found.append(np.bitwise_or.reduceat(found[-1], edges[:-1].numpy()))
    return tuple(torch.from_numpy(level.view(np.uint8)) for level in found[:0:-1])


def _means_below(index: PrefixIndex, vectors: Tensor) -> tuple[Tensor, ...]:
    """L tensors (M_{d+1}, V) float32: the mean of vectors (M, V) over the items below a node."""
    found = [vectors[index.items].double()]
    for edges in (index.below[-1], *index.child[:0:-1]):
        found.append(torch.segment_reduce(found[-1], "sum", offsets=edges.long(), axis=0))
    counts = (edges.diff().unsqueeze(1) for edges in index.below[1:])
    return tuple((total / count).float() for total, count in zip(found[:0:-1], counts, strict=True))
