"""Attention with a shared context against the library's own with the context repeated for every beam."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from onesearch.model.attention import shared_context_attention


@pytest.mark.parametrize("beams", [1, 2, 7])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("additive", [False, True])
def test_shared_keys_are_repeated_keys(beams: int, length: int, additive: bool) -> None:
    torch.manual_seed(0)
    batch, heads, context, width = 3, 2, 9, 8
    query = torch.randn(batch * beams, heads, length, width)
    key, value = torch.randn(2, batch, heads, context, width)
    mask = torch.rand(batch, 1, 1, context) < 0.6
    mask[..., 0] = True
    if additive:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    module = torch.nn.Module()
    module.is_causal = False  # type: ignore[assignment]
    shared, weights = shared_context_attention(module, query, key, value, mask, scaling=0.3)
    repeated, _ = sdpa_attention_forward(
        module, query, *(one.repeat_interleave(beams, 0) for one in (key, value, mask)), scaling=0.3
    )
    assert weights is None
    assert shared.shape == (batch * beams, length, heads, width)
    torch.testing.assert_close(shared, repeated, atol=1e-6, rtol=1e-5)
