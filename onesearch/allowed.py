"""Which items a request may be answered with: any boolean over items, exact at every prefix, from one cumulative sum.

Items are sorted by semantic ID, so with a running count of the allowed ones the allowed items below a prefix are a
difference of two numbers. No prefix is looked at before a search asks for it: a filter costs one pass over the items,
and two look-ups a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class Allowed:
    """The items that each of B requests may be answered with.

    Attributes:
        index: the prefix index that the filter was made for, of N items.
        total: (R, N + 1) int32; `total[r, i]` of the first i items in SID order are allowed by filter r.
        row: (B,) int64 filter of each request; (1,) where any number of requests have the same one.
    """

    index: PrefixIndex
    total: Tensor
    row: Tensor

    @classmethod
    def of(cls, index: PrefixIndex, mask: Tensor, row: Tensor | None = None) -> Allowed:
        """Allow the items where `mask` is true.

        Args:
            mask: (R, M) bool over item indices, on the device of the index; M is above the largest of them. By
                default R is the number of requests, or 1 for a filter that all of them have.
            row: (B,) int64 row of each request, so that requests with the same filter share one.

        Raises:
            ValueError: a mask that is not boolean, not (R, M), or does not reach every item; a row that it lacks.
        """
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise ValueError(f"mask must be (R, M) bool, not {tuple(mask.shape)} {mask.dtype}")
        if not mask.is_meta and int(index.items.max()) >= mask.shape[1]:
            raise ValueError(f"mask is about {mask.shape[1]} items, the index holds item {int(index.items.max())}")
        if row is None:
            row = torch.arange(len(mask), device=mask.device)
        elif row.ndim != 1 or bool(((row < 0) | (row >= len(mask))).any()):
            raise ValueError(f"row must be (B,) from 0 to {len(mask) - 1}, not {row.tolist()}")
        ordered = mask.index_select(1, index.items)
        total = torch.zeros(len(mask), len(index) + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(ordered, 1, dtype=torch.int32, out=total[:, 1:])
        return cls(index, total, row.long())

    def below(self, depth: int, nodes: Tensor) -> Tensor:
        """Whether any allowed item lies below each of the nodes (B, ...) of this depth: bool of their shape."""
        edges = self.index.below[depth]
        return self._any(edges[nodes], edges[nodes + 1])

    def items(self, places: Tensor) -> Tensor:
        """Whether the items at these places (B, ...) of `index.items` are allowed: bool of their shape."""
        return self._any(places, places + 1)

    def counts(self) -> Tensor:
        """(B,) int64 number of allowed items; (1,) where any number of requests have the same filter."""
        return self.total[self.row, -1].long()

    def _any(self, first: Tensor, end: Tensor) -> Tensor:
        """Whether any item of the places `first` to `end`, each (B, ...), is allowed."""
        start = (self.row * self.total.shape[1]).view(-1, *[1] * (first.ndim - 1))
        flat = self.total.view(-1)
        return flat[start + end] > flat[start + first]


def item_mask(
    total: int, allow: Sequence[Tensor | None] | None = None, deny: Sequence[Tensor | None] | None = None
) -> Tensor:
    """The allow and deny lists of B requests as a mask for `Allowed.of`.

    Args:
        total: number M of item indices.
        allow: for each request the only item indices (n,) that may come out; None for all.
        deny: for each request the item indices (n,) that may not, even if allowed; None for none.

    Returns:
        (B, M) bool.

    Raises:
        ValueError: neither list, lists of unequal length, or an item index that is not from 0 to M - 1.
    """
    lists = [one for one in (allow, deny) if one is not None]
    if not lists or len({len(one) for one in lists}) != 1:
        raise ValueError(f"one allow or deny list a request, not {[len(one) for one in lists]}")
    mask = torch.ones(len(lists[0]), total, dtype=torch.bool)
    for listed, kept in ((allow, True), (deny, False)):
        for request, items in enumerate(listed or ()):
            if items is None:
                continue
            wrong = items[(items < 0) | (items >= total)]
            if len(wrong):
                raise ValueError(f"request {request}: item {int(wrong[0])} is not among the {total} items")
            if kept:
                mask[request] = False
            mask[request, items.long()] = kept
    return mask
