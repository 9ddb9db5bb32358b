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
    total = torch.zeros(items.shape, device=items.device)
    for depth in range(index.levels):
        log_prob, child, code = scorer.next_codes(state, depth, nodes)
        if depth == 0:  # one empty prefix, from which K go on
            log_prob, child, code = (one.expand(-1, items.shape[1], -1) for one in (log_prob, child, code))
        edges = index.below[depth + 1]
        wanted = torch.searchsorted(edges, place.to(edges.dtype), right=True) - 1
        chosen = (wanted - child[..., 0]).unsqueeze(-1)
        total = total + log_prob.gather(-1, chosen).squeeze(-1)
        if depth + 1 < index.levels:
            parent = torch.arange(items.shape[1], device=items.device).expand_as(items)
            parent = torch.zeros_like(parent) if depth == 0 else parent
            state = scorer.advance(state, depth, parent, code.gather(-1, chosen).squeeze(-1))
        nodes = wanted
    return total.masked_fill(items < 0, -torch.inf)


def _places(index: PrefixIndex) -> Tensor:
    """(M,) int64 where each item stands in the order of semantic IDs; 0 for those that are not in the index."""
    items = index.items.long()
    places = items.new_zeros(int(items.max()) + 1)
    places[items] = torch.arange(len(items), device=items.device)
    return places
