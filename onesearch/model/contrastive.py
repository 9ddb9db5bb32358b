"""Cross-entropy of vectors against many others, without keeping the logits: over all of them, some, or a range each.

The gradient is made in the same pass as the loss, a block of rows at a time, as in "Cut Your Losses in Large-Vocabulary
Language Models" (https://arxiv.org/abs/2411.09009): of a batch against a whole catalogue no (P, M) matrix is ever kept.
Under autocast the products are of its type, and sums are float32.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

BLOCK = 2**22
"""Logits at a time: a block and its exponentials stay in the caches of a processor."""

LEAST = 1e-37
"""A smaller share counts as this in what is reported, 85 nats; the gradient does not change."""


@dataclass(frozen=True)
class Bonus:
    """What is added to the logits of some places.

    Attributes:
        row, column: (R,) int64 places, ascending by row, each once.
        value: () or (R,) what is added; a gradient goes to it.
    """

    row: Tensor
    column: Tensor
    value: Tensor


def softmax_loss(
    queries: Tensor,
    keys: Tensor,
    target: Tensor,
    weight: Tensor,
    scale: float,
    bias: Tensor | None = None,
    bonus: Bonus | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of `softmax(scale * queries @ keys.T + bias + bonus)`.

    Args:
        queries: (P, D). keys: (M, D). target: (P,) int64 rows of `keys`.
        weight: (P,) what each row counts in the loss; no gradient goes to it.
        scale: the inverse temperature.
        bias: (M,) added to the logits, without a gradient: minus log of how likely a key was drawn, for sampled keys.

    Returns:
        the weighted sum of the cross-entropies (), and each of them (P,) in nats, without a gradient.
    """
    if bonus is None:
        return _Softmax.apply(queries, keys, target, weight, scale, bias, None, None, None)
    value = bonus.value.expand(bonus.row.shape)
    return _Softmax.apply(queries, keys, target, weight, scale, bias, bonus.row, bonus.column, value)


def ranged_softmax_loss(
    queries: Tensor,
    keys: Tensor,
    first: Tensor,
    count: Tensor,
    target: Tensor,
    weight: Tensor,
    scale: float,
    bonus: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`softmax_loss` in which row p competes with the keys `first[p]:first[p] + count[p]` alone.

    The cost is that of the P ranges, whatever M is.

    Args:
        first, count, target: (P,) int64; the target is a row of `keys` inside its range.
        bonus: (P, max(count)) what is added to the logits of the ranges, with a gradient.
    """
    return _Ranged.apply(queries, keys, first, count, target, weight, scale, bonus)


def ranged_logits(queries: Tensor, keys: Tensor, first: Tensor, count: Tensor, scale: float, width: int) -> Tensor:
    """(P, width) float32 `scale * queries[p] @ keys[first[p] + c]` in place c, -inf from `count[p]` on.

    Sampled dense-dense products: neither a (P, M) matrix nor a copy of the keys of every row is made.
    """
    row, place, key, edges = _ranges(first, count)
    shape = (len(queries), len(keys))
    pattern = torch.sparse_csr_tensor(edges, key, queries.new_zeros(len(key)), size=shape, check_invariants=False)
    found = torch.sparse.sampled_addmm(pattern, queries, keys.T, beta=0.0, alpha=scale).values()
    table = found.new_full((len(queries), width), -torch.inf)
    table[row, place] = found
    return table


def _ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The numbers of P ranges, one after the other: the row of each (R,), its place there (R,), the number itself (R,);
    and (P + 1,) where each range begins among them."""
    edges = F.pad(count.cumsum(0), (1, 0))
    row = torch.repeat_interleave(count)
    place = torch.arange(len(row), device=row.device) - edges[row]
    return row, place, first[row] + place, edges


def _low(device: torch.device) -> torch.dtype:
    """The type of matrix products."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        target: Tensor,
        weight: Tensor,
        scale: float,
        bias: Tensor | None,
        row: Tensor | None,
        column: Tensor | None,
        value: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        kind, learns = _low(queries.device), any(ctx.needs_input_grad)
        nats = torch.empty(len(queries), device=queries.device)
        to_queries, to_keys = torch.empty(queries.shape, device=queries.device), torch.zeros_like(keys).float()
        if bias is not None:  # one more column: cheaper than one more pass over the logits
            asked = torch.cat([queries * scale, torch.ones_like(queries[:, :1])], 1).to(kind)
            low = torch.cat([keys, bias.unsqueeze(1)], 1).to(kind)
        else:
            asked, low = (queries * scale).to(kind), keys.to(kind)
        drawn = (weight.unsqueeze(1) * scale * queries).to(kind)
        step = max(1, BLOCK // len(keys))
        to_value = None if value is None else torch.zeros_like(value)
        with torch.autocast(queries.device.type, enabled=False):
            for start in range(0, len(queries), step):
                rows = slice(start, start + step)
                right = target[rows].unsqueeze(1)
                logit = asked[rows] @ low.T
                inside, place = slice(0, 0), None
                if row is not None and column is not None and value is not None:
                    ends = torch.tensor([start, start + step], device=row.device)
                    inside = slice(*torch.searchsorted(row, ends).tolist())
                    place = (row[inside] - start, column[inside])
                    logit[place] += value[inside].to(kind)
                share = logit.softmax(1)
                nats[rows] = -share.gather(1, right).squeeze(1).float().clamp(min=LEAST).log()
                if learns:
                    share.scatter_add_(1, right, share.new_full(right.shape, -1.0))
                    to_queries[rows] = (share @ low)[:, : queries.shape[1]]
                    to_keys += share.T @ drawn[rows]
                    if place is not None and to_value is not None:
                        to_value[inside] = share[place].float() * weight[rows][place[0]]
            to_queries *= weight.unsqueeze(1) * scale
        ctx.save_for_backward(to_queries, to_keys, to_value)
        ctx.mark_non_differentiable(nats)
        return (weight * nats).sum(), nats

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Any, ...]:
        to_queries, to_keys, to_value = ctx.saved_tensors
        to_value = None if to_value is None else to_value * outer[0]
        return to_queries * outer[0], to_keys * outer[0], None, None, None, None, None, None, to_value


class _Ranged(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        first: Tensor,
        count: Tensor,
        target: Tensor,
        weight: Tensor,
        scale: float,
        bonus: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        queries, keys = queries.float(), keys.float()
        row, place, key, edges = _ranges(first, count)
        table = ranged_logits(queries, keys, first, count, scale, int(count.max()) if len(count) else 1)
        share = (table if bonus is None else table + bonus).log_softmax(1)
        right = (target - first).unsqueeze(1)
        nats = -share.gather(1, right).squeeze(1)
        if any(ctx.needs_input_grad):
            share = share.exp_().scatter_add_(1, right, torch.full_like(right, -1.0, dtype=share.dtype))
            share *= weight.unsqueeze(1)
            part = share[row, place] * scale
            to_queries = F.embedding_bag(key, keys, edges[:-1], per_sample_weights=part, mode="sum")
            order = key.argsort()
            starts = F.pad(torch.bincount(key, minlength=len(keys)).cumsum(0), (1, 0))[:-1]
            to_keys = F.embedding_bag(row[order], queries, starts, per_sample_weights=part[order], mode="sum")
            ctx.save_for_backward(to_queries, to_keys, None if bonus is None else share)
        ctx.mark_non_differentiable(nats)
        return (weight * nats).sum(), nats

    @staticmethod
    def backward(ctx: Any, *outer: Any) -> tuple[Any, ...]:
        to_queries, to_keys, to_bonus = ctx.saved_tensors
        to_bonus = None if to_bonus is None else to_bonus * outer[0]
        return to_queries * outer[0], to_keys * outer[0], None, None, None, None, None, to_bonus
