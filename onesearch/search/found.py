"""What a search returns, and the step from semantic IDs to items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.prefix import PrefixIndex


@dataclass(frozen=True)
class Found:
    """k items for each of B requests, best first. Where fewer are allowed, the last places are empty, and where a
    filter allows none, all.

    Attributes:
        items: (B, k) int64 item indices, -1 in empty places.
        scores: (B, k) float32 what the strategy ranks by, -inf in empty places.
        log_prob: (B, k) float32 log-probability of the item's semantic ID, whatever is allowed; -inf in empty places.
        nodes: (B, k) int64 the leaf of the prefix index that the item is in; 0 in empty places.
    """

    items: Tensor
    scores: Tensor
    log_prob: Tensor
    nodes: Tensor

    @property
    def counts(self) -> Tensor:
        """(B,) int64 how many items were found."""
        return (self.items >= 0).sum(1)


def check(scores: Tensor) -> None:
    """Raises a `FloatingPointError` that names the request with a score (B, ...) that is not a number."""
    wrong = scores.isnan().flatten(1).any(1)
    if bool(wrong.any()):
        raise FloatingPointError(f"the model's scores of request {int(wrong.int().argmax())} are not numbers")


def check_filter(index: PrefixIndex, batch: int, allowed: Allowed | None) -> None:
    """Raises a `ValueError` where a filter is of another catalogue, or for another number of requests."""
    if allowed is None:
        return
    if len(allowed.index) != len(index):
        raise ValueError(f"the filter is for {len(allowed.index)} items, the catalogue has {len(index)}")
    if len(allowed.row) not in (1, batch):
        raise ValueError(f"the filter is for {len(allowed.row)} requests, there are {batch}")


def items_below(
    index: PrefixIndex, nodes: Tensor, alive: Tensor, k: int, allowed: Allowed | None
) -> tuple[Tensor, Tensor]:
    """The first k items below leaves, in the order of the leaves, and within a leaf in its own.

    Args:
        nodes: (B, K) leaves. alive: (B, K) bool, those that count.

    Returns:
        (B, k) items, -1 in empty places, and (B, k) which of the K leaves each is in.
    """
    first, count = _ranks(index, nodes, allowed)
    count = count.masked_fill(~alive, 0)
    end = count.cumsum(1)
    place = torch.arange(k, device=nodes.device).expand(len(nodes), k).contiguous()
    leaf = torch.searchsorted(end, place, right=True).clamp(max=nodes.shape[1] - 1)
    rank = first.gather(1, leaf) + place - (end - count).gather(1, leaf)
    return _items(index, rank, place < end[:, -1:], allowed), leaf


def item_of_each(index: PrefixIndex, nodes: Tensor, alive: Tensor, share: Tensor, allowed: Allowed | None) -> Tensor:
    """(B, K) one allowed item of every leaf, -1 where it is not alive.

    Args:
        share: (B, K) float in [0, 1), where in the leaf.
    """
    first, count = _ranks(index, nodes, allowed)
    rank = first + torch.minimum((share * count).long(), count - 1)
    return _items(index, rank, alive, allowed)


def codes_of(index: PrefixIndex, nodes: Tensor, depth: int | None = None) -> Tensor:
    """(..., l) the codes of nodes (...) of a depth l, by default of leaves."""
    found = []
    for level in reversed(range(index.levels if depth is None else depth)):
        found.append(index.code[level][nodes].long())
        edges = index.child[level]
        nodes = torch.searchsorted(edges, nodes.to(edges.dtype), right=True) - 1
    return torch.stack(found[::-1], -1)


def _ranks(index: PrefixIndex, nodes: Tensor, allowed: Allowed | None) -> tuple[Tensor, Tensor]:
    """(B, K) the rank of the first item of every leaf among those that count, and how many there are."""
    edges = index.below[-1]
    first, last = edges[nodes].long(), edges[nodes + 1].long()
    if allowed is not None:
        first, last = _before(allowed, first), _before(allowed, last)
    return first, last - first


def _items(index: PrefixIndex, rank: Tensor, alive: Tensor, allowed: Allowed | None) -> Tensor:
    """(B, K) the items of a rank, -1 where they are not alive."""
    place = rank if allowed is None else _place(allowed, rank)
    return index.items[place.clamp(0, len(index) - 1)].long().masked_fill(~alive, -1)


def _before(allowed: Allowed, place: Tensor) -> Tensor:
    """(B, K) how many allowed items come before places (B, K) of the order of the index."""
    start = (allowed.row * allowed.total.shape[1]).unsqueeze(-1)
    return allowed.total.view(-1)[start + place].long()


def _place(allowed: Allowed, rank: Tensor) -> Tensor:
    """(B, K) the place of the allowed item with this rank, by halving."""
    low, high = torch.zeros_like(rank), torch.full_like(rank, len(allowed.index) - 1)
    for _ in range(len(allowed.index).bit_length()):
        middle = (low + high) // 2
        enough = _before(allowed, middle + 1) > rank
        low, high = torch.where(enough, low, (middle + 1).minimum(high)), torch.where(enough, middle, high)
    return low
