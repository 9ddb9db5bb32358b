"""Listwise DPO as OneSearch's released code has it (https://arxiv.org/abs/2509.03236): one winner, K losers.

    L = -log sigma( -log sum_l exp( a_l beta (guard + r_l - r_w) ) )  [ + sft (-log pi(w)) ]

with r = log pi / pi_ref; a_l = (max(R_w, 1) - R_l)^-alpha + 1, so that a loser whose reward R is near the winner's is
pushed harder; and guard = c relu(log pi_ref(w) - log pi(w)), which counts only while the winner is less likely than it
was. Where R_l reaches max(R_w, 1) the power is infinite or not a number: here the difference is at least `LEAST`, which
the released code leaves open.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST: Final = 0.05
"""The least difference of rewards; with alpha 1.5 a loser then counts 90 times as much as one of reward 0."""


def listwise_dpo(
    winner: Tensor,
    losers: Tensor,
    reference_winner: Tensor,
    reference_losers: Tensor,
    there: Tensor,
    weights: Tensor,
    beta: float,
    guard: float = 0.0,
) -> Tensor:
    """(B,) the loss of each list; 0 where it has no loser.

    Args:
        winner, reference_winner: (B,) log-probabilities in the policy and in the reference.
        losers, reference_losers: (B, K). there: (B, K) bool, which exist.
        weights: (B, K) a_l.
        guard: c.
    """
    fallen = guard * F.relu(reference_winner - winner).unsqueeze(-1)
    apart = (losers - reference_losers) - (winner - reference_winner).unsqueeze(-1)
    exponent = (weights * beta * (fallen + apart)).masked_fill(~there, -torch.inf)
    some = there.any(-1)
    total = exponent.masked_fill(~some.unsqueeze(-1), 0).logsumexp(-1)
    return F.softplus(total).where(some, 0.0)  # -log sigma(-x) = log(1 + e^x)


def reward_weights(winner: Tensor, losers: Tensor, alpha: float) -> Tensor:
    """(B, K) a_l for the rewards of winners (B,) and of losers (B, K)."""
    apart = (winner.clamp(min=1).unsqueeze(-1) - losers).clamp(min=LEAST)
    return apart**-alpha + 1
