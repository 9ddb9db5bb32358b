"""Beam search over semantic IDs: every hypothesis is a prefix of a sellable item, every score exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.model.generator import Context, Generator


@dataclass(frozen=True)
class Found:
    """The best items of B requests, best first.

    Attributes:
        items: (B, k) int64 item indices, -1 where the catalogue has fewer.
        scores: (B, k) float log-probability of the item's semantic ID, -inf beside -1.
    """

    items: Tensor
    scores: Tensor


@torch.inference_mode()
def beam_search(model: Generator, context: Context, beams: int, k: int) -> Found:
    """The k most probable items among those that a beam of width `beams` reaches.

    With `beams` at least the number of prefixes of every depth the result is that of scoring every item. Items that
    share a semantic ID share its score and follow each other in the order of the SID table.
    """
    batch, levels = context.batch, model.bound.index.levels
    device = context.states.device
    codes = torch.zeros(batch, 1, 0, dtype=torch.int64, device=device)
    nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
    scores = torch.zeros(batch, 1, device=device)
    following = (context.slot_codes[..., 0] >= 0)[:, None]  # (B, K, H)
    for depth in range(levels):
        hidden = model.hidden(context, codes)[:, :, -1]
        log_prob, child, code = model.next_codes(context, depth, hidden, nodes, following)
        total = (scores.unsqueeze(-1) + log_prob).flatten(1)
        scores, best = total.topk(min(max(beams, k), total.shape[1]), dim=1)
        parent = best // child.shape[-1]
        nodes, chosen = child.flatten(1).gather(1, best), code.flatten(1).gather(1, best)
        codes = torch.cat([_rows(codes, parent), chosen.unsqueeze(-1)], -1)
        following = _rows(following, parent) & (context.slot_codes[:, None, :, depth] == chosen.unsqueeze(-1))
    return _leaves(model, nodes, scores, k)


def _rows(values: Tensor, parent: Tensor) -> Tensor:
    """values (B, K, ...) picked by parent (B, K')."""
    index = parent.view(*parent.shape, *[1] * (values.ndim - 2)).expand(*parent.shape, *values.shape[2:])
    return values.gather(1, index)


def _leaves(model: Generator, nodes: Tensor, scores: Tensor, k: int) -> Found:
    """The items below the final nodes (B, K), k of them."""
    index = model.bound.index
    below = index.below[-1]
    first, count = below[nodes], below[nodes + 1] - below[nodes]
    most = int(count.max())
    place = torch.arange(most, device=nodes.device)
    valid = (place < count.unsqueeze(-1)) & scores.isfinite().unsqueeze(-1)
    items = index.items[first.unsqueeze(-1) + torch.minimum(place, count.unsqueeze(-1) - 1)]
    items = items.masked_fill(~valid, -1).flatten(1)
    spread = scores.unsqueeze(-1).expand(*scores.shape, most).masked_fill(~valid, -torch.inf).flatten(1)
    # Valid places first, in the order of their scores: a stable sort keeps the order of the leaf.
    order = spread.sort(dim=1, descending=True, stable=True).indices[:, :k]
    items, spread = items.gather(1, order), spread.gather(1, order)
    short = k - items.shape[1]
    if short > 0:
        items = torch.nn.functional.pad(items, (0, short), value=-1)
        spread = torch.nn.functional.pad(spread, (0, short), value=-torch.inf)
    return Found(items, spread)
