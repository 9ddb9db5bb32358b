"""Attention in which all beams of a request share the context's keys and values.

`transformers` lets any backbone use an attention function by name. In cross-attention the queries come from B x K beams
while keys and values exist once for each of the B requests: the beams are folded into the query length, so the context
is neither copied nor projected again. Everywhere else this is the library's own scaled-dot-product attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "shared_context"


def shared_context_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend from (B * K, heads, T, d) queries to (B, heads, S, d) keys and values.

    Args:
        attention_mask: broadcastable to (B, 1, 1, S) where K > 1.

    Returns:
        (B * K, T, heads, d), and None for the weights.
    """
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


AttentionInterface.register(NAME, shared_context_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
