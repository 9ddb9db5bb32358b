"""The log-probability of given items, by any scorer: their semantic IDs are followed instead of searched for."""

from __future__ import annotations

import torch
from torch import Tensor

from onesearch.prefix import PrefixIndex
from onesearch.search.scorer import Scorer, State


@torch.inference_mode()
def item_log_prob(scorer: Scorer[State], items: Tensor) -> Tensor:
    """(B, K) float32 log-probabilities of the semantic IDs of items (B, K), -inf where an item is -1."""
    index = scorer.index
    place = _places(index)[items.clamp(min=0)]
    state = scorer.begin()
    nodes = torch.zeros(len(items), 1, dtype=torch.int64, device=items.device)
    prefix = torch.zeros_like(items)  # (B, K) which of the nodes (B, U) each item is below
    total = torch.zeros(items.shape, device=items.device)
    for depth in range(index.levels):
        log_prob, child, code = scorer.next_codes(state, depth, nodes)
        edges = index.below[depth + 1]
        wanted = torch.searchsorted(edges, place.to(edges.dtype), right=True) - 1
        chosen = prefix * child.shape[-1] + wanted - child[..., 0].gather(1, prefix)
        total = total + log_prob.flatten(1).gather(1, chosen)
        if depth + 1 < index.levels:
            nodes, of_item = _distinct(wanted)
            parent, picked = (
                one[:, :1].expand_as(nodes).scatter(1, of_item, one)
                for one in (prefix, code.flatten(1).gather(1, chosen))
            )
            state, prefix = scorer.advance(state, depth, parent, picked), of_item
    return total.masked_fill(items < 0, -torch.inf)


def _distinct(nodes: Tensor) -> tuple[Tensor, Tensor]:
    """(B, U) the nodes of each row, each once, then the first of the row again; and (B, K) which of them each was.

    Items share prefixes, so most of the work is done once for several. On a device whose values would have to be
    waited for, U is K.

    >>> _distinct(torch.tensor([[7, 5, 7], [4, 4, 4]]))
    (tensor([[5, 7],
            [4, 4]]), tensor([[1, 0, 1],
            [0, 0, 0]]))
    """
    ordered, order = nodes.sort(1)
    rank = torch.zeros_like(nodes)
    rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
    width = int(rank.max()) + 1 if nodes.device.type == "cpu" else nodes.shape[1]
    distinct = nodes[:, :1].expand(-1, width).scatter(1, rank, ordered)
    return distinct, torch.zeros_like(nodes).scatter(1, order, rank)


def _places(index: PrefixIndex) -> Tensor:
    """(M,) int64 where each item stands in the order of semantic IDs; 0 for those that are not in the index."""
    items = index.items.long()
    places = items.new_zeros(int(items.max()) + 1)
    places[items] = torch.arange(len(items), device=items.device)
    return places
