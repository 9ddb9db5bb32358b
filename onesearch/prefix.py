"""The prefix index: which codes may follow a prefix, and which items lie below it, as flat arrays.

Items are sorted by semantic ID, so the items below a prefix are one contiguous range. Whatever is additive over items
(how many pass a filter, how often they were bought lately) is therefore known for *every* prefix of every level after
one cumulative sum: `PrefixIndex.mass`.

Notation: N items, L levels, depth d = 0..L; depth 0 is the root, a node of depth d is a prefix of d codes that at least
one item has. Nodes of a depth are numbered in the order of their prefixes, so the children of a node are a contiguous
range of the next depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class PrefixIndex:
    """Flat arrays over the prefixes of N items with L-level semantic IDs.

    Attributes:
        items: (N,) int64 item indices sorted by semantic ID; items of one ID keep the order they were given in.
        code: L tensors; `code[d]` (M_{d+1},) int64 is the last code of every node of depth d + 1.
        child: L tensors; `child[d]` (M_d + 1,) int64: the children of node i of depth d are the nodes
            `child[d][i]:child[d][i + 1]` of depth d + 1.
        below: L + 1 tensors; `below[d]` (M_d + 1,) int64: the items below node i of depth d are
            `items[below[d][i]:below[d][i + 1]]`.
        widest: L numbers; the most children that a node of depth d has.
    """

    items: Tensor
    code: tuple[Tensor, ...]
    child: tuple[Tensor, ...]
    below: tuple[Tensor, ...]
    widest: tuple[int, ...]

    @property
    def levels(self) -> int:
        return len(self.code)

    def __len__(self) -> int:
        return len(self.items)

    @classmethod
    def build(cls, codes: NDArray[np.integer], order: NDArray[np.integer] | None = None) -> PrefixIndex:
        """Index the semantic IDs `codes` (N, L).

        Args:
            order: (N,) rank of each item within its semantic ID (smaller first); by default the item's index.

        Raises:
            ValueError: no items, or a negative code.
        """
        if codes.ndim != 2 or codes.size == 0:
            raise ValueError(f"codes must be (N, L) with N, L > 0, not {codes.shape}")
        if codes.min() < 0:
            raise ValueError("codes must not be negative")
        total, levels = codes.shape
        rank = np.arange(total) if order is None else order
        items = np.lexsort((rank, *(codes[:, level] for level in reversed(range(levels)))))
        ordered = codes[items]
        changed = np.zeros(total, bool)
        changed[0] = True
        starts = [np.zeros(1, np.int64)]
        for level in range(levels):
            changed[1:] |= ordered[1:, level] != ordered[:-1, level]
            starts.append(np.flatnonzero(changed))
        child = [
            np.append(np.searchsorted(starts[level + 1], starts[level]), len(starts[level + 1]))
            for level in range(levels)
        ]
        return cls(
            items=torch.from_numpy(items.astype(np.int64)),
            code=tuple(torch.from_numpy(ordered[starts[level + 1], level].astype(np.int64)) for level in range(levels)),
            child=tuple(torch.from_numpy(edges.astype(np.int64)) for edges in child),
            below=tuple(torch.from_numpy(np.append(s, total).astype(np.int64)) for s in starts),
            widest=tuple(int(np.diff(edges).max()) for edges in child),
        )

    def to(self, device: torch.device | str) -> PrefixIndex:
        """The same index on another device."""
        return PrefixIndex(
            self.items.to(device),
            tuple(t.to(device) for t in self.code),
            tuple(t.to(device) for t in self.child),
            tuple(t.to(device) for t in self.below),
            self.widest,
        )

    def children(self, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The children of many nodes of one depth at once.

        Args:
            nodes: (...) int64 nodes of depth `depth`.

        Returns:
            child nodes (..., C) int64 of depth `depth + 1`, their codes (..., C) int64, and which of the C places hold
            a child (..., C) bool; C is the most children of any node of that depth. Empty places repeat a valid node.
        """
        first = self.child[depth][nodes].unsqueeze(-1)
        count = self.child[depth][nodes + 1].unsqueeze(-1) - first
        place = torch.arange(self.widest[depth], device=nodes.device)
        node = first + torch.minimum(place, count - 1)
        return node, self.code[depth][node], place < count

    def descend(self, depth: int, nodes: Tensor, code: Tensor) -> Tensor:
        """The child of every node that has this code: (...) int64 nodes of depth `depth + 1`.

        Raises:
            KeyError: a node has no such child.
        """
        child, codes, valid = self.children(depth, nodes)
        match = (codes == code.unsqueeze(-1)) & valid
        if not bool(match.any(-1).all()):
            raise KeyError("a semantic ID that no item has")
        return child.gather(-1, match.int().argmax(-1, keepdim=True)).squeeze(-1)

    def mass(self, weight: Tensor) -> list[Tensor]:
        """Sums of an item weight below every prefix.

        Args:
            weight: (..., N) per item, in the order of item indices; bool counts the items of a filter.

        Returns:
            L tensors; the d-th (..., M_{d+1}) holds the sums below the nodes of depth d + 1. Integers stay exact;
            floats are summed in float64.
        """
        ordered = weight.index_select(-1, self.items)
        exact = torch.int64 if not weight.dtype.is_floating_point else torch.float64
        total = torch.nn.functional.pad(ordered.to(exact).cumsum(-1), (1, 0))
        return [total.index_select(-1, b[1:]) - total.index_select(-1, b[:-1]) for b in self.below[1:]]

    def nodes(self, codes: Tensor) -> list[Tensor]:
        """The path of full semantic IDs: codes (..., L) -> L tensors (...) of nodes of depth 1..L."""
        node = torch.zeros(codes.shape[:-1], dtype=torch.int64, device=codes.device)
        path = []
        for level in range(self.levels):
            node = self.descend(level, node, codes[..., level])
            path.append(node)
        return path
