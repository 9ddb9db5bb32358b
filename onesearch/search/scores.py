"""The log-probability of given items, by any scorer: their semantic IDs are followed instead of searched for."""

from __future__ import annotations

import torch
from torch import Tensor

from onesearch.prefix import PrefixIndex
from onesearch.search.scorer import Scorer, State


@torch.inference_mode()
def item_log_prob(scorer: Scorer[State], items: Tensor) -> Tensor:
    """(B, K) float32 log-probabilities of the semantic IDs of items (B, K), -inf where an item is -1.

    Items that begin alike ask the model once.
    """
    index = scorer.index
    place = _places(index)[items.clamp(min=0)]
    state = scorer.begin()
    nodes = torch.zeros(len(items), 1, dtype=torch.int64, device=items.device)
    of = torch.zeros_like(place)  # which of the prefixes an item has
    total = torch.zeros(items.shape, device=items.device)
    for depth in range(index.levels):
        log_prob, child, code = scorer.next_codes(state, depth, nodes)
        edges = index.below[depth + 1]
        wanted = torch.searchsorted(edges, place.to(edges.dtype), right=True) - 1
        chosen = of * child.shape[-1] + wanted - child[..., 0].gather(1, of)
        total = total + log_prob.flatten(1).gather(1, chosen)
        if depth + 1 < index.levels:
            nodes, of, first = _distinct(wanted)
            parent = torch.div(chosen, child.shape[-1], rounding_mode="floor").gather(1, first)
            state = scorer.advance(state, depth, parent, code.flatten(1).gather(1, chosen.gather(1, first)))
    return total.masked_fill(items < 0, -torch.inf)


def _distinct(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct values of each row of (B, K): (B, U) values, where fewer the smallest again; (B, K) the place of
    each value among them; (B, U) a place where each is."""
    ordered, order = values.sort(dim=1, stable=True)
    other = torch.ones_like(ordered)
    other[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).long()
    rank = other.cumsum(1) - 1
    of = torch.empty_like(rank).scatter_(1, order, rank)
    size = int(rank.max()) + 1 if rank.numel() else 1
    first = order[:, :1].expand(-1, size).clone().scatter_(1, rank, order)
    return values.gather(1, first), of, first


def _places(index: PrefixIndex) -> Tensor:
    """(M,) int64 where each item stands in the order of semantic IDs; 0 for those that are not in the index."""
    items = index.items.long()
    places = items.new_zeros(int(items.max()) + 1)
    places[items] = torch.arange(len(items), device=items.device)
    return places
