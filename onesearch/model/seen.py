"""What it means for an item that the user has had it: learnt, since some shops live on repeats and others know none.

An item of the history is near to everything that follows from it, itself most of all, and nearness alone cannot say
that nobody buys it twice (or that everybody does). So logits of items in the history get a learnt bonus b, below nought
where repeats are rare. A prefix of whose n items k were seen gets log(1 + (k / n) (e^b - 1)): what would come out if
its items were equally likely. The copy path of `onesearch/model/generator.py` is the same thought where repeats are
common; the form here is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """Which items each of P positions has seen.

    Attributes:
        row, item: (R,) int64 pairs of a position and an item, ascending by position, each once.
    """

    row: Tensor
    item: Tensor

    @classmethod
    def of(cls, items: Tensor, learnt: Tensor) -> Seen:
        """The items up to each position.

        Args:
            items: (B, T) int64, below 0 where there is none. learnt: (B, T) bool, the P positions that count.
        """
        place = torch.arange(items.shape[1], device=items.device)
        first = once(items) >= 0
        pairs = (place <= place.unsqueeze(1)) & first.unsqueeze(1) & learnt.unsqueeze(2)
        history, position, at = pairs.nonzero(as_tuple=True)
        number = (learnt.flatten().cumsum(0) - 1).view_as(learnt)
        return cls(number[history, position], items[history, at])


def once(items: Tensor) -> Tensor:
    """(B, T) the items, -1 where one stood at an earlier place or there is none."""
    place = torch.arange(items.shape[1], device=items.device)
    again = (items.unsqueeze(2) == items.unsqueeze(1)) & (place < place.unsqueeze(1))
    return items.masked_fill(again.any(2) | (items < 0), -1)


def prefix_bonus(seen: Tensor, count: Tensor, bonus: Tensor) -> Tensor:
    """log(1 + (k / n) (e^b - 1)) of prefixes with k (...) of their n (...) items seen, for the bonus b ()."""
    share = (seen / count).clamp(max=1.0)
    value = torch.logaddexp(torch.log1p(-share), share.clamp(min=1e-30).log() + bonus)
    return torch.where(share > 0, value, torch.zeros_like(value))


def range_bonus(seen: Seen, path: Tensor, first: Tensor, count: Tensor, items: Tensor, bonus: Tensor) -> Tensor:
    """(P, max(count)) the bonus of the children `first[p]:first[p] + count[p]` of P prefixes.

    Args:
        path: (N,) the child that each item is below. items: (M,) how many items are below each child.
    """
    width = int(count.max()) if len(count) else 1
    place = path[seen.item] - first[seen.row]
    inside = (place >= 0) & (place < count[seen.row])
    seen_below = torch.zeros(len(first), width, device=first.device)
    seen_below.index_put_((seen.row[inside], place[inside]), torch.ones((), device=first.device), accumulate=True)
    child = (first.unsqueeze(1) + torch.arange(width, device=first.device)).clamp(max=len(items) - 1)
    return prefix_bonus(seen_below, items[child], bonus)
