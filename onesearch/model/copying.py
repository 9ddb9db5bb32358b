"""The copy path: past purchases that continue a prefix add their own probability (pointer networks, 1506.03134).

To the probability that the rest of the model gives a code, every history slot that continues the prefix with it adds a
weight exp(a_slot), so that a repeated purchase need not be spelt from memory. The weights a slot adds are odds against
everything the rest of the model would say, whatever its logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onesearch.model.ahead import FAINT
from onesearch.model.context import Context


class CopyPath(nn.Module):
    """The weights of the slots at every depth: the decoder state against the slot's, and the slot's features.

    Args:
        width: of states. sizes: codes of each level. features: of a slot.
    """

    def __init__(self, width: int, sizes: Sequence[int], features: int) -> None:
        super().__init__()
        self.sizes, levels = tuple(sizes), len(sizes)
        self.query = nn.Linear(width, width * levels, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.features = nn.Sequential(nn.Linear(features, 32), nn.GELU(), nn.Linear(32, levels))

    def bias(self, slot_features: Tensor, filled: Tensor) -> Tensor:
        """(B, H, L) what the features (B, H, F) say, -inf where a slot is not filled (B, H)."""
        bias: Tensor = self.features(slot_features)
        return bias.masked_fill(~filled.unsqueeze(-1), -torch.inf)

    def forward(
        self, logit: Tensor, code: Tensor, context: Context, depth: int, hidden: Tensor, following: Tensor
    ) -> Tensor:
        """(B, K, C) log(softmax(logit) + sum of exp(a) over the slots that continue the prefix with this code).

        Args:
            logit, code: (B, K, C) of the children. hidden: (B, K, D). following: (B, K, H), slots that have the
                prefix.
        """
        copied = self._copied(context, depth, hidden, following)
        return torch.logaddexp(logit.log_softmax(-1), copied.gather(-1, code)).masked_fill(logit.isneginf(), -torch.inf)

    def _copied(self, context: Context, depth: int, hidden: Tensor, following: Tensor) -> Tensor:
        """(B, K, size) log of the summed exp(a) of the history slots that continue each prefix with each code."""
        assert context.copy_keys is not None and context.copy_bias is not None
        width = hidden.shape[-1]
        query = F.linear(hidden, self.query.weight[depth * width : (depth + 1) * width])
        score = torch.einsum("bkd,bhd->bkh", query, context.copy_keys) * width**-0.5
        score = (score + context.copy_bias[:, None, :, depth]).masked_fill(~following, -torch.inf)
        top = score.detach().amax(-1, keepdim=True).clamp(min=-50)
        place = context.slot_codes[:, None, :, depth].clamp(min=0).expand_as(score)
        mass = torch.zeros(*score.shape[:-1], self.sizes[depth], device=score.device, dtype=score.dtype)
        return (mass.scatter_add(-1, place, (score - top).exp()) + FAINT).log() + top
