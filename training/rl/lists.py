"""The reward of a whole list: list-reward ("debiased") GRPO (https://arxiv.org/abs/2510.16925).

Plain GRPO rewards one item, so that of the samples which miss, a nearly good one and a bad one earn the same, and a
group in which all miss has nothing to learn from. Here something is sampled that the list is conditioned on (the paper:
reasoning; here the beginning of a semantic ID, or keywords of a language model), a constrained beam finds the list,
and the list earns the rank-weighted relevance of what is in it. The advantages of what was sampled are GRPO's.

The paper's formula was not recovered; this is our completion:

    R = w_list sum_k w_k rel(item_k) + w_format [it ended, and says something] + w_length f(length) + w_valid filled

with w_k = 1 / log2(k + 1), together 1; f = 1 up to the wanted length and falling linearly to 0 at twice that; filled
the share of the list's places that hold an item. A beginning of fixed length has the first and the last only, and all
beginnings share the first two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.corpus import Requests
from training.rl.advantages import list_rewards
from training.rl.rewards import Rewards
from training.rl.rollouts import Rollout


@dataclass(frozen=True)
class ListWeights:
    """Weights of the parts, and the wanted length in tokens."""

    relevance: float = 1.0
    format: float = 0.1
    length: float = 0.1
    valid: float = 0.1
    wanted: int = 8


def reward_lists(
    rollout: Rollout, requests: Requests, rewards: Rewards, weights: ListWeights, end: int | None
) -> tuple[Tensor, dict[str, NDArray[np.float32]]]:
    """(B, G) what lists earn, and each reward (B, G, k) of their items by its name.

    Args:
        end: the token that ends a text.
    """
    batch, group, length = rollout.items.shape
    earned = rewards(requests, rollout.items.reshape(batch, group * length))
    total = torch.from_numpy(earned.total.reshape(batch, group, length))
    filled = torch.from_numpy(rollout.items >= 0).float().mean(-1)
    found = weights.relevance * list_rewards(total) + weights.valid * filled
    if rollout.words:
        ended, said = _ended(rollout.codes.cpu(), rollout.used.cpu(), end), rollout.used.sum(-1).cpu()
        found = found + weights.format * (ended & (said > 1)).float() + weights.length * brief(said, weights.wanted)
    return found, {name: one.reshape(batch, group, length) for name, one in earned.each.items()}


def brief(said: Tensor, wanted: int) -> Tensor:
    """(...) 1 for lengths (...) up to the wanted one, falling to 0 at twice that."""
    return (2 - said.float() / wanted).clamp(0, 1)


def _ended(codes: Tensor, used: Tensor, end: int | None) -> Tensor:
    """(B, G) whether the last token said is the one that ends a text."""
    last = (used.sum(-1, keepdim=True) - 1).clamp(min=0)
    return codes.gather(-1, last).squeeze(-1) == (-1 if end is None else end)
