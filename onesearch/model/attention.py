"""Attention in which all beams of a request share the context's keys and values.

`transformers` lets any backbone use an attention function by name. Here the queries are those of K beams of B requests,
while the context's keys and values exist once for each request, and are neither copied nor projected again.

- Cross-attention: queries come from B x K rows and are folded into one of B rows with K queries each. The keys are the
  context's, and nothing else is attended to.
- Self-attention of a causal model: the K newest codes of a request come as one row, and do not see each other. Of the
  prompt, and of the codes before, the argument `shared_past` has the keys and values. Both parts have a softmax of
  their own; the logarithm of what each sums up to says how much of the whole it is.

Everywhere else this is the library's own scaled-dot-product attention, with soft-capped scores (Gemma 2) and sinks
(GPT-OSS) where a model has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "shared_context"

BLOCK = 2**22
"""So many attention scores are held at once, at most."""

Pair = tuple[Tensor, Tensor]
"""Keys and values."""


@dataclass(frozen=True)
class Step:
    """A code that all beams have read.

    Attributes:
        pairs: per layer keys and values (B, K', heads, d) of the K' beams that there were then.
        row: (B * K) int64 the row, from 0 to B * K' - 1, of the beam that each of today's K beams was then.
    """

    pairs: tuple[Pair, ...]
    row: Tensor

    def picked(self, layer: int) -> Pair:
        """Keys and values (B, K, heads, d) of today's beams."""
        keys, values = (one.flatten(0, 1).index_select(0, self.row) for one in self.pairs[layer])
        batch = len(self.pairs[layer][0])
        return keys.unflatten(0, (batch, -1)), values.unflatten(0, (batch, -1))


@dataclass(frozen=True)
class SharedPast:
    """What beams attend to besides their newest code.

    Attributes:
        prompt: per layer keys and values (B, heads, S, d), the places of a prompt first.
        length: (B,) int64 places used.
        steps: the codes before the newest.
        new: per layer keys and values (B, K, heads, d) of the newest code, filled in by the attention function.
    """

    prompt: tuple[Pair, ...]
    length: Tensor
    steps: tuple[Step, ...]
    new: dict[int, Pair] = field(default_factory=dict)

    def bias(self, places: int, window: int | None, like: Tensor) -> Tensor:
        """(B, 1, 1, S) what is added to the scores of the prompt: 0 where a place is seen, elsewhere a number so low
        that nothing is left of it, but finite, as the window may have left the prompt."""
        place = torch.arange(places, device=self.length.device)
        unseen = place >= self.length.unsqueeze(1)
        if window is not None:  # the newest code is one of the window's places
            unseen |= place + window <= (self.length + len(self.steps)).unsqueeze(1)
        bias = torch.zeros(unseen.shape, dtype=like.dtype, device=like.device)
        return bias.masked_fill(unseen, torch.finfo(like.dtype).min / 2)[:, None, None]


def shared_context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_past: SharedPast | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from (B * K, heads, T, d) queries to (B, heads, S, d) keys and values.

    With `shared_past`, queries, keys and values are the (B, heads, K, d) of the newest code of every beam.

    Args:
        attention_mask: broadcastable to (B, 1, 1, S) where K > 1; not looked at with `shared_past`.
        softcap: scores are bent to stay between minus this and this. s_aux: (heads,) sinks, a score each that takes
            its part of the softmax and gives nothing.

    Returns:
        (B * K, T, heads, d), or with `shared_past` (B, K, heads, d), and None for the weights.

    Raises:
        ValueError: soft-capped scores or sinks in an encoder or in cross-attention.
    """
    if shared_past is not None:
        window: int | None = kwargs.get("sliding_window")
        return _attend_shared(module, query, key, value, scaling, shared_past, softcap, s_aux, window), None
    batch = key.shape[0]
    if softcap is not None or s_aux is not None:
        if query.shape[0] != batch or not getattr(module, "is_causal", True):
            raise ValueError("soft-capped scores and sinks are known of causal models only")
        return _attend_capped(query, key, value, attention_mask, scaling, softcap, s_aux), None
    if query.shape[0] == batch and _slow_backwards(query):
        return _written_out(query, key, value, attention_mask, dropout, scaling), None
    if query.shape[0] == batch:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    beams, heads, length, width = query.shape[0] // batch, *query.shape[1:]
    folded = query.view(batch, beams, heads, length, width).transpose(1, 2).reshape(batch, heads, -1, width)
    out = torch.nn.functional.scaled_dot_product_attention(
        folded, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    out = out.view(batch, heads, beams, length, width).permute(0, 2, 3, 1, 4)
    return out.reshape(batch * beams, length, heads, width), None


def _slow_backwards(query: Tensor) -> bool:
    """Whether the gradient of fused attention would take longer than all else: bfloat16 on a CPU."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """(B, T, heads, d) of queries (B, heads, T, d)."""
    weight = torch.nn.functional.dropout(attention_weights(query, key, mask, scaling), dropout)
    return (weight.to(value.dtype) @ value).transpose(1, 2)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """(B, heads, T, S) what queries (B, heads, T, d) take of keys (B, heads, S, d)."""
    score = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return masked(score, mask).softmax(-1)


def masked(score: Tensor, mask: Tensor | None) -> Tensor:
    """Scores without what is not seen: where a mask is False, or what it adds to them."""
    if mask is None:
        return score
    return score.masked_fill(~mask, torch.finfo(score.dtype).min) if mask.dtype == torch.bool else score + mask


def _attend_shared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    shared: SharedPast,
    softcap: float | None,
    sinks: Tensor | None,
    window: int | None,
) -> Tensor:
    """(B, K, heads, d): the prompt's places, the codes before and the newest one, under one softmax."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    prompt_key, prompt_value = shared.prompt[layer]
    (batch, _, beams, width), groups = query.shape, key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    # Queries of one key head together: (B, groups, K * heads a group, d)
    folded = query.view(batch, groups, -1, beams, width).transpose(2, 3).flatten(2, 3)
    bias = shared.bias(prompt_key.shape[2], window, query)
    out, total = _weighed(folded, prompt_key, prompt_value, bias, scale, softcap)
    out = out.unflatten(2, (beams, -1)).transpose(1, 2)  # (B, K, groups, heads a group, d)
    total = total.unflatten(2, (beams, -1)).transpose(1, 2)

    shared.new[layer] = key.transpose(1, 2), value.transpose(1, 2)
    pairs = [*(step.picked(layer) for step in shared.steps), shared.new[layer]][-(window or 0) :]
    query = query.transpose(1, 2).unflatten(2, (groups, -1))
    scores = [_capped((query * keys.unsqueeze(3)).sum(-1) * scale, softcap) for keys, _ in pairs]
    if sinks is not None:
        scores.append(sinks.view(groups, -1).expand_as(total))
    weight = torch.stack([total, *scores], -1).softmax(-1).to(value.dtype)
    out = out * weight[..., :1]
    for place, (_, values) in enumerate(pairs, 1):
        out = out.addcmul_(values.unsqueeze(3), weight[..., place, None])
    return out.flatten(2, 3)


def _weighed(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of queries (B, heads, Q, d) to keys (B, heads, S, d), of which `bias` is broadcastable to (B, 1, Q, S).

    Returns:
        (B, heads, Q, d), and (B, heads, Q) float32 the log of the sum of exp(score).
    """
    if query.device.type == "cpu" and softcap is None and query.shape[-1] == value.shape[-1]:
        # What scaled_dot_product_attention calls here, which does not tell the sums.
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, total = flash(query, key, value, attn_mask=bias.expand(-1, -1, query.shape[2], -1), scale=scale)
        return out, total
    return _weighed_in_blocks(query, key, value, bias, scale, softcap)


def _weighed_in_blocks(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same on any device, so that memory does not grow with Q x S."""
    size = max(1, BLOCK // (query.shape[0] * query.shape[1] * key.shape[2]))
    bias = bias.expand(-1, -1, query.shape[2], -1)
    parts = []
    for start in range(0, query.shape[2], size):
        rows = slice(start, start + size)
        score = (_capped(query[:, :, rows] @ key.mT * scale, softcap) + bias[:, :, rows]).float()
        total = score.logsumexp(-1)
        parts.append(((score - total.unsqueeze(-1)).exp().to(value.dtype) @ value, total))
    out, totals = zip(*parts, strict=True)
    return torch.cat(out, 2), torch.cat(totals, 2)


def _attend_capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """(B, T, heads, d) of what the library's scaled-dot-product attention does not know; no mask means causal."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
    if mask is None:
        length, places = query.shape[2], key.shape[2]
        mask = torch.ones(1, 1, length, places, dtype=torch.bool, device=query.device).tril(places - length)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    bias = bias.masked_fill(~mask, torch.finfo(query.dtype).min / 2)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, total = _weighed(query, key, value, bias, scale, softcap)
    if sinks is not None:
        out = out * (total - sinks.view(1, -1, 1)).sigmoid().unsqueeze(-1).to(out.dtype)
    return out.transpose(1, 2)


def _capped(score: Tensor, softcap: float | None) -> Tensor:
    return score if softcap is None else (score / softcap).tanh() * softcap


AttentionInterface.register(NAME, shared_context_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
