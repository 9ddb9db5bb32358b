"""Advantages: how much better each of a group's G samples is than the group. Pure functions over (B, G, L).

- `group`: GRPO's (https://arxiv.org/abs/2402.03300), scaled as TRL scales; "none" is Dr. GRPO's.
- `position_aware`: TPMA of OneSearch-V2 (https://arxiv.org/abs/2603.24422), as its released code has it, with two
  remedies to choose: its matches are position by position, so that a wrong first code still earns later ones
  (`prefix` asks for all codes before); and its last weight is 0, so that the last code never earns anything
  (`weights` are an option). The paper does not say over what the mean and the deviation go; here over the group.
- `list_rewards`: the reward of a list is the rank-weighted relevance of what is in it; our completion of
  https://arxiv.org/abs/2510.16925, whose formula was not recovered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

Scale = Literal["group", "batch", "none"]

SPREAD: Final = 1e-4
"""What TRL adds to a deviation before it divides by it."""

WEIGHTS: Final = (2.0, 2.0, 1.0, 1.0, 0.0)
"""TPMA's of five codes."""


def group(rewards: Tensor, there: Tensor | None = None, scale: Scale = "group", chance: Tensor | None = None) -> Tensor:
    """(B, G) the rewards (B, G) against their group's mean, over a deviation.

    Args:
        there: (B, G) bool, which samples exist; the others count nowhere and get 0. By default all.
        scale: the deviation is the group's, that of all rewards ("batch", which several processes must share), or 1.
        chance: (B, G) how likely each sample is among its group, together 1; by default all alike. Different samples
            are not as frequent as draws would be: with their chance as weight, in the mean and in what is returned,
            the gradient is that of the expected reward among them (minimum risk training, Shen et al. 2016,
            https://arxiv.org/abs/1512.02433).
    """
    there = torch.ones_like(rewards, dtype=torch.bool) if there is None else there
    apart = _centred(rewards, there, chance)
    if scale == "group":
        apart = apart / (deviation(rewards, there, chance) + SPREAD).unsqueeze(-1)
    elif scale == "batch":
        apart = apart / (rewards[there].std() + SPREAD)
    return apart if chance is None else apart * chance * there.sum(-1, keepdim=True)


def deviation(rewards: Tensor, there: Tensor, chance: Tensor | None = None) -> Tensor:
    """(B,) standard deviation of each group's rewards, with G - 1 in the denominator; `chance` as for `group`."""
    number = there.sum(-1)
    square = _centred(rewards, there, chance).square()
    total = square.sum(-1) if chance is None else (square * chance).sum(-1) * number
    return (total / (number - 1).clamp(min=1)).sqrt()


class PositionAware(NamedTuple):
    """advantages (B, G, L), and gates (B, G, L) that the loss of each code is multiplied by."""

    advantages: Tensor
    gates: Tensor


def position_aware(
    codes: Tensor, truths: Tensor, there: Tensor | None = None, weights: Sequence[float] = WEIGHTS, prefix: bool = False
) -> PositionAware:
    """TPMA: what each code adds to the match with the best of the right answers.

    Args:
        codes: (B, G, L). truths: (B, T, L) semantic IDs of right answers, -1 in empty places.
        weights: L numbers; of fewer codes than are given the first ones.
        prefix: a code matches only if all codes before it match.
    """
    matches = (codes.unsqueeze(2) == truths.unsqueeze(1)) & (truths >= 0).unsqueeze(1)  # (B, G, T, L)
    if prefix:
        matches = matches.cumprod(-1).bool()
    weight = torch.tensor(list(weights)[: codes.shape[-1]], device=codes.device)
    if len(weight) < codes.shape[-1]:
        raise ValueError(f"{len(weight)} weights for {codes.shape[-1]} codes")
    matched = matches.float()
    reward = (matched * weight).cumsum(-1).amax(2)
    gained = reward.diff(dim=-1, prepend=torch.zeros_like(reward[..., :1]))
    there = torch.ones_like(codes[..., 0], dtype=torch.bool) if there is None else there
    of_group = gained.transpose(1, 2), there.unsqueeze(1).expand(-1, codes.shape[-1], -1)
    number = there.sum(-1, keepdim=True).clamp(min=1).unsqueeze(-1)
    apart = _centred(*of_group)
    spread = (apart.square().sum(-1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
    advantages = (apart / (spread + 1e-8)).transpose(1, 2)
    before = torch.arange(1, codes.shape[-1], device=codes.device)
    share = (matched.cumsum(-1)[..., :-1] / before).amax(2)
    return PositionAware(advantages, torch.cat([torch.ones_like(share[..., :1]), share], -1))


def rank_weights(length: int, device: torch.device | None = None) -> Tensor:
    """(K,) what each place of a list counts: 1 / log2(k + 1), together 1."""
    weight = 1 / torch.arange(2, length + 2, device=device).float().log2()
    return weight / weight.sum()


def list_rewards(relevance: Tensor) -> Tensor:
    """(B, G) rewards of lists by the relevance (B, G, K) of what is in them, best rank first."""
    return relevance @ rank_weights(relevance.shape[-1], relevance.device)


def _centred(values: Tensor, there: Tensor, chance: Tensor | None = None) -> Tensor:
    """(..., G) minus the mean of those that are there; 0 where they are not."""
    known = values.masked_fill(~there, 0)
    if chance is None:
        mean = known.sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
    else:
        mean = (known * chance).sum(-1, keepdim=True)
    return (known - mean).masked_fill(~there, 0)
