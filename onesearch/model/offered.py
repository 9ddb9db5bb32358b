"""Which share of the items below a prefix is on offer, for every place and period: sparse, since most is not.

A row (`onesearch.corpus.offers`) lists the nodes of each depth below which anything is on offer, ascending, so that a
node is found by halving; items come in the order of their semantic IDs, so that no depth needs to be sorted again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onesearch.corpus.offers import Offers
from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class Level:
    """The nodes of one depth with anything on offer below.

    Attributes:
        offsets: (R + 1,) int64 into the two below. node: (n,) int32, ascending within a row.
        share: (n, K) float16 of the items below, of each kind.
        longest: nodes of the longest row.
        nodes: M of this depth.
    """

    offsets: Tensor
    node: Tensor
    share: Tensor
    longest: int
    nodes: int

    def to(self, device: torch.device | str) -> Level:
        offsets, node, share = self.offsets.to(device), self.node.to(device), self.share.to(device)
        return Level(offsets, node, share, self.longest, self.nodes)

    def of_nodes(self, row: Tensor, node: Tensor) -> Tensor:
        """(n, K) float shares at nodes (n,) in rows (n,)."""
        low, stop = self.offsets[row], self.offsets[row + 1]
        high, last = stop, max(len(self.node) - 1, 0)
        for _ in range(self.longest.bit_length()):
            middle = (low + high) >> 1
            right = (low < high) & (self.node[middle.clamp(max=last)] < node)
            low, high = torch.where(right, middle + 1, low), torch.where(right, high, middle)
        if not len(self.node):
            return self.share.new_zeros((len(node), self.share.shape[1]), dtype=torch.float32)
        low = low.clamp(max=last)
        there = (self.node[low] == node) & (low < stop)
        return self.share[low].float() * there.unsqueeze(-1)

    def of_all(self, row: Tensor) -> Tensor:
        """(K, B, M) float shares at all nodes in rows (B,)."""
        place = self.offsets[row].unsqueeze(1) + torch.arange(self.longest, device=row.device)
        there = place < self.offsets[row + 1].unsqueeze(1)
        place = torch.where(there, place, 0)
        node = torch.where(there, self.node[place] if len(self.node) else place, self.nodes)  # the last is cut off
        found = self.share.new_zeros((self.share.shape[1], len(row), self.nodes + 1), dtype=torch.float32)
        for kind, share in enumerate(self.share.unbind(-1)):
            if len(share):
                found[kind].scatter_(1, node.long(), share[place].float())
        return found[..., :-1]


def offered_below(index: PrefixIndex, offers: Offers) -> tuple[Level, ...]:
    """L levels; the d-th is about the nodes of depth d + 1. Items that the index does not have are left out."""
    if not offers.kinds:
        return ()
    rank = np.full(offers.items, -1, np.int64)
    rank[index.items.cpu().numpy()] = np.arange(len(index.items))
    row, item = np.divmod(offers.key, offers.items)
    place = rank[item]
    kept = place >= 0
    row, place, kind = row[kept], place[kept], offers.kind[kept]
    order = np.argsort(row * len(index.items) + place)
    row, place, kind = row[order], place[order], kind[order]
    flags = ((kind[:, None] >> np.arange(len(offers.kinds))) & 1).astype(np.float32)
    levels = []
    for below in index.below[1:]:
        edges = below.cpu().numpy()
        node = np.repeat(np.arange(len(edges) - 1), np.diff(edges))[place]
        begin = np.flatnonzero(np.diff(row * len(edges) + node, prepend=-1))
        count = np.add.reduceat(flags, begin) if len(begin) else flags
        node, at = node[begin], row[begin]
        share = count / np.diff(edges)[node][:, None]
        offsets = np.searchsorted(at, np.arange(offers.row_count + 1))
        levels.append(
            Level(
                torch.from_numpy(offsets),
                torch.from_numpy(node.astype(np.int32)),
                torch.from_numpy(share.astype(np.float16)),
                int(np.diff(offsets).max(initial=0)),
                len(edges) - 1,
            )
        )
    return tuple(levels)
