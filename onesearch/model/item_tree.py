"""What a sequence model knows of the items it may answer with: their codes and content, and those of every prefix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class ItemTree:
    """The prefix index, and the content below each of its nodes; the d-th tensor is about the nodes of depth d + 1.

    Attributes:
        index: of the items that are generated from.
        item_codes: (N, L) int64 of all items of the corpus, those that are not generated from too.
        item_content: (N, V) float32.
        path: (N, L) int64 the node of each depth that each item is below; of items that are not generated from, -1.
        unique: whether every semantic ID has one item, so that the deepest nodes are the items.
        codes: L tensors (M_{d+1}, d + 1) int64, the prefix.
        content: L tensors (M_{d+1}, V), mean content of the items. count: L tensors (M_{d+1},), how many there are.
    """

    index: PrefixIndex
    item_codes: Tensor
    item_content: Tensor
    path: Tensor
    unique: bool
    codes: tuple[Tensor, ...]
    content: tuple[Tensor, ...]
    count: tuple[Tensor, ...]

    @classmethod
    def build(cls, index: PrefixIndex, item_codes: Tensor, item_content: Tensor) -> ItemTree:
        """Sum up what is below every prefix of the index."""
        ordered = index.semantic_ids()
        below = index.mass(torch.ones(len(item_codes), dtype=torch.int64))
        sums = index.mass(item_content.T)
        items = index.items.long()
        path = torch.full_like(item_codes, -1, dtype=torch.int64)
        for depth, edges in enumerate(index.below[1:]):
            path[items, depth] = torch.arange(len(edges) - 1).repeat_interleave(edges.diff())
        starts = [edges[:-1].long() for edges in index.below[1:]]
        return cls(
            index,
            item_codes.long(),
            item_content,
            path,
            len(index.code[-1]) == len(index),
            tuple(ordered[start, : depth + 1] for depth, start in enumerate(starts)),
            tuple((total / count).T.float().contiguous() for total, count in zip(sums, below, strict=True)),
            tuple(one.float() for one in below),
        )

    def to(self, device: torch.device | str) -> ItemTree:
        """The same on another device."""
        return ItemTree(
            self.index.to(device),
            self.item_codes.to(device),
            self.item_content.to(device),
            self.path.to(device),
            self.unique,
            tuple(one.to(device) for one in self.codes),
            tuple(one.to(device) for one in self.content),
            tuple(one.to(device) for one in self.count),
        )
