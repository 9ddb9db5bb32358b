"""Attention in which all beams of a request share the context's keys and values.

`transformers` lets any backbone use an attention function by name. Here the queries come from B x K beams, while the
context's keys and values exist once for each of the B requests: the beams are folded into the query length, so the
context is neither copied nor projected again.

- Cross-attention: the keys are the context's, and nothing else is attended to.
- Self-attention of a causal model: the keys that arrive are those of a beam's own few codes; the prompt's come as the
  argument `shared_prompt`, and one softmax goes over both. Scores are worked on in blocks, so that memory does not grow
  with beams x prompt length.

Everywhere else this is the library's own scaled-dot-product attention.
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


@dataclass(frozen=True)
class SharedPrompt:
    """The keys and values of B prompts, once each.

    Attributes:
        keys, values: per layer (B, heads, S, d), the places of a prompt first.
        length: (B,) int64 places used. bias: (B, 1, S) float, 0 where a place is used, otherwise -inf.
        attended: the layers that looked at it, filled in by the attention function.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    length: Tensor
    bias: Tensor
    attended: set[int] = field(default_factory=set)


def shared_context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    shared_prompt: SharedPrompt | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from (B * K, heads, T, d) queries to (B, heads, S, d) keys and values.

    With `shared_prompt`, T is 1, and keys and values are the (B * K, heads, t, d) of the beams' own t codes.

    Args:
        attention_mask: broadcastable to (B, 1, 1, S) where K > 1; not looked at with `shared_prompt`.

    Returns:
        (B * K, T, heads, d), and None for the weights.
    """
    if shared_prompt is not None:
        return _attend_prompt(module, query, key, value, scaling, shared_prompt, **kwargs), None
    batch = key.shape[0]
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


def _attend_prompt(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    shared: SharedPrompt,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> Tensor:
    """(B * K, 1, heads, d) of one query a beam: one softmax over the prompt's places and the beam's own."""
    if softcap is not None or kwargs.get("s_aux") is not None:
        raise ValueError("attention with soft-capped scores or sinks is not shared between beams")
    layer: int = module.layer_idx  # type: ignore[assignment]
    shared.attended.add(layer)
    prompt_key, prompt_value = shared.keys[layer], shared.values[layer]
    batch, groups, places, width = prompt_key.shape
    rows, heads = query.shape[:2]
    beams, each, own = rows // batch, heads // groups, key.shape[2]
    scale = width**-0.5 if scaling is None else scaling
    # Queries of one key head together: (B, K, groups, heads a group, d)
    query = query.view(batch, beams, groups, each, width) * scale
    key, value = (one.view(batch, beams, groups, own, -1) for one in (key, value))
    bias = shared.bias
    if sliding_window is not None:  # the newest own code is one of the window's places
        place = torch.arange(places, device=bias.device)
        outside = place + sliding_window <= (shared.length + own - 1).unsqueeze(-1)
        bias = bias.masked_fill(outside.unsqueeze(1), -torch.inf)
        key, value = key[..., -sliding_window:, :], value[..., -sliding_window:, :]
    bias = bias.to(query.dtype).unsqueeze(1).expand(batch, groups, 1, places).reshape(batch * groups, 1, places)
    transposed, flat_value = prompt_key.flatten(0, 1).transpose(1, 2), prompt_value.flatten(0, 1)
    size = max(1, BLOCK // (batch * heads * places))
    out = [
        _block(query[:, part], key[:, part], value[:, part], transposed, flat_value, bias)
        for part in (slice(start, start + size) for start in range(0, beams, size))
    ]
    return (out[0] if len(out) == 1 else torch.cat(out, 1)).reshape(rows, 1, heads, -1)


def _block(query: Tensor, key: Tensor, value: Tensor, prompt_key: Tensor, prompt_value: Tensor, bias: Tensor) -> Tensor:
    """Attention of some of the beams.

    Args:
        query: (B, k, g, e, d). key, value: (B, k, g, t, d). bias: (B * g, 1, S).
        prompt_key: (B * g, d, S). prompt_value: (B * g, S, d).

    Returns:
        (B, k, g, e, d).
    """
    batch, beams, groups, each, width = query.shape
    folded = query.transpose(1, 2).reshape(batch * groups, beams * each, width)
    prompt_score = torch.baddbmm(bias, folded, prompt_key)  # (B * g, k * e, S)
    own_score = query @ key.transpose(-1, -2)  # (B, k, g, e, t)
    own_score = own_score.transpose(1, 2).reshape(batch * groups, beams * each, -1)
    weight = torch.cat([prompt_score, own_score], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    places = prompt_score.shape[-1]
    out = torch.bmm(weight[..., :places], prompt_value).view(batch, groups, beams, each, -1).transpose(1, 2)
    own_weight = weight[..., places:].reshape(batch, groups, beams, each, -1).transpose(1, 2)
    return out + (own_weight.unsqueeze(-1) * value.unsqueeze(-3)).sum(-2)


AttentionInterface.register(NAME, shared_context_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
