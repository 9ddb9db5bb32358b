"""Cross-attention of a few positions to a long prompt, without keys and values of the prompt's words.

A decoder that writes a semantic ID has a handful of positions, its prompt a hundred. Of every head

    q . (W_k x + b_k) = (W_k' q) . x + q . b_k
    sum_s a_s (W_v x_s + b_v) = W_v (sum_s a_s x_s) + b_v sum_s a_s

so the projections may be made of the T queries instead of the S words: 4 T H S D operations a layer instead of 4 S D^2
(H heads, width D), with the same result. Search does not: its beams share keys and values that are made once.

The identity is what low-rank target attention (LREA, 2503.02542) absorbs its matrices with; to train encoder-decoders
with it is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from onesearch.model.attention import masked

NAME: Final = "absorbed"
CROSS: Final = ("encoder_attn", "EncDecAttention", "crossattention.self")
"""What BART's family, T5's and BERT call the attention of a decoder to its encoder."""
PROJECTIONS: Final = (("k_proj", "v_proj"), ("k", "v"), ("key", "value"))
"""What they call those of keys and values."""


@contextmanager
def absorbed(model: nn.Module) -> Iterator[int]:
    """For a while, cross-attentions of a model make no keys and values where that is less work.

    Yields:
        How many cross-attentions do so: those whose projections are plain linear layers, without adapters.
    """
    changed = []
    for name, module in model.named_modules():
        pair = _projections(module) if name.endswith(CROSS) else None
        if pair is not None:
            changed.append((module, module.config, pair))
    for module, config, pair in changed:
        module.config = copy.copy(config)  # of this layer alone
        module.config._attn_implementation = NAME
        for projection in pair:
            projection.forward = _unprojected  # type: ignore[assignment]  # of this instance, until the end
    try:
        yield len(changed)
    finally:
        for module, config, pair in changed:
            module.config = config
            for projection in pair:
                del projection.forward


def _projections(attention: nn.Module) -> tuple[nn.Linear, nn.Linear] | None:
    for names in PROJECTIONS:
        key, value = (getattr(attention, name, None) for name in names)
        if type(key) is nn.Linear and type(value) is nn.Linear:
            return key, value
    return None


def _unprojected(states: Tensor) -> Tensor:
    return states


def absorbed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from (B, H, T, d) queries to the prompt's states, cut into heads as if they were keys: (B, H', S, d).

    Args:
        attention_mask: broadcastable to (B, H, T, S); where it is False nothing is seen, or it is added to the scores.

    Returns:
        (B, T, H, d), and None for the weights.
    """
    pair = _projections(module)
    assert pair is not None
    batch, heads, length, width = query.shape
    states = key.transpose(1, 2).flatten(2)
    scale = width**-0.5 if scaling is None else scaling
    if heads * length >= states.shape[-1]:  # many queries: keys and values are less work
        keys, values = (F.linear(states, one.weight, one.bias).unflatten(-1, (heads, width)) for one in pair)
        out = F.scaled_dot_product_attention(
            query, keys.transpose(1, 2), values.transpose(1, 2), attention_mask, dropout, scale=scale
        )
        return out.transpose(1, 2), None
    of_key, of_value = (one.weight.unflatten(0, (heads, width)) for one in pair)  # (H, d, D)
    asked = (query.transpose(0, 1).flatten(1, 2) @ of_key).unflatten(1, (batch, length)).transpose(0, 1)
    score = (asked.flatten(1, 2) @ states.mT).unflatten(1, (heads, length))
    if pair[0].bias is not None:  # the softmax drops it, but gradients are expected of every weight
        score = score + query @ pair[0].bias.view(heads, width, 1)
    score = score * scale
    weight = F.dropout(masked(score, attention_mask).softmax(-1), dropout)
    read = (weight.flatten(1, 2).to(states.dtype) @ states).unflatten(1, (heads, length))
    out = (read.transpose(0, 1).flatten(1, 2) @ of_value.mT).unflatten(1, (batch, length)).permute(1, 2, 0, 3)
    if pair[1].bias is not None:
        out = out + pair[1].bias.view(heads, width) * weight.sum(-1).transpose(1, 2).unsqueeze(-1).to(out.dtype)
    return out, None


AttentionInterface.register(NAME, absorbed_attention)
