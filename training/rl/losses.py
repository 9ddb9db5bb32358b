"""Policy losses over the codes of G sampled semantic IDs per request: pure functions over (B, G, L).

Each is a surrogate (what a code's ratio and advantage count) and a normalisation (how codes add up). Names and defaults
are those of `trl.GRPOConfig` 1.16, and the values are TRL's where TRL has them:

- `grpo` (https://arxiv.org/abs/2402.03300): clipped ratios, the mean over each sample, then over samples.
- `dr_grpo` (2503.20783): the sum over all codes, by the number of samples and the longest sample; with
  `scale_rewards="none"`. `dapo` (2503.14476) and `bnpo`: the mean over all codes of the batch.
- GSPO (2507.18071): `importance_sampling_level="sequence"`, the ratio is the geometric mean over a sample.
- `ecpo` (OneRec, 2506.13695): where the advantage is negative, what was sampled counts as likely enough that no ratio
  is above 1 + epsilon + `early`; unlike a clipped ratio, a capped one keeps its gradient.
- `gbpo` (OneRec-V2, 2508.20900; from memory): the same bound without clipping, by the dynamics of a binary
  cross-entropy: the denominator is at least pi for a positive advantage, at least 1 - pi for a negative one.
- `tpma` (OneSearch-V2, 2603.24422): ratios without clipping, each times its gate.

Of fixed-length semantic IDs without gaps `grpo`, `dapo` and `bnpo` are one loss, and `dr_grpo` differs in its
advantages only. Before the first update after a rollout all ratios are 1, and so are all of these but for the
normalisation: differences need `num_iterations` of 2 or more.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "ecpo", "gbpo", "tpma"]
LOSS_TYPES: Final = get_args(LossType)
Level = Literal["token", "sequence"]


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    used: Tensor,
    *,
    loss_type: LossType = "grpo",
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    early: float = 0.1,
    importance_sampling_level: Level = "token",
    gates: Tensor | None = None,
    extra: Tensor | None = None,
    codes_in_batch: Tensor | float | None = None,
) -> Tensor:
    """() the loss.

    Args:
        log_prob, old_log_prob: (B, G, L) of each code, now and when it was sampled.
        advantages: (B, G), or (B, G, L) where each code has its own.
        used: (B, G, L) bool, the codes that count.
        epsilon, epsilon_high: how far below and above 1 a ratio counts; `delta`: a bound from above for all ratios.
        early: ECPO's delta.
        gates: (B, G, L) what each code's loss is multiplied by.
        extra: (B, G, L) what is added to each code's loss, such as a weighted divergence from a reference.
        codes_in_batch: codes in the whole batch by the number of processes, for `dapo`; by default those given here.
    """
    known = used.float()
    advantage = advantages if advantages.dim() == 3 else advantages.unsqueeze(-1)
    log_ratio = _log_ratio(log_prob, old_log_prob, used, importance_sampling_level)
    if loss_type in ("ecpo", "gbpo"):
        log_ratio = log_ratio + _bound(log_prob.masked_fill(~used, 0), log_ratio, advantage, loss_type, epsilon, early)
    ratio = log_ratio.exp()
    if loss_type in ("gbpo", "tpma"):
        loss = -ratio * advantage
    else:
        high = epsilon if epsilon_high is None else epsilon_high
        clipped = ratio.clamp(1 - epsilon, 1 + high)
        bounded = ratio if delta is None else ratio.clamp(max=delta)
        loss = -torch.minimum(bounded * advantage, clipped * advantage)
    if gates is not None:
        loss = loss * gates
    if extra is not None:
        loss = loss + extra
    return _normalised(loss.expand_as(known) * known, known, loss_type, codes_in_batch)


def importance_ratio(log_prob: Tensor, old_log_prob: Tensor, used: Tensor, level: Level) -> Tensor:
    """(B, G, L) of each code, or (B, G, 1) the geometric mean over each sample's."""
    return _log_ratio(log_prob, old_log_prob, used, level).exp()


def divergence(log_prob: Tensor, reference: Tensor, ratio: Tensor | None = None) -> Tensor:
    """(B, G, L) the estimate k3 of KL(policy || reference) of each code: e^d - d - 1 with d = log pi_ref - log pi.

    Args:
        ratio: (B, G, L) or (B, G, 1) the importance ratios that correct its bias (TRL's `use_bias_correction_kl`).
    """
    apart = reference - log_prob
    found = apart.exp() - apart - 1
    return found if ratio is None else found * ratio


def _log_ratio(log_prob: Tensor, old_log_prob: Tensor, used: Tensor, level: Level) -> Tensor:
    found = (log_prob - old_log_prob).masked_fill(~used, 0).float()
    if level == "token":
        return found
    return found.sum(-1, keepdim=True) / used.sum(-1, keepdim=True).clamp(min=1)


def _bound(
    log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, loss_type: LossType, epsilon: float, early: float
) -> Tensor:
    """(B, G, L) what is added to log ratios where a method takes a larger denominator than the sampling policy's."""
    now = log_ratio.detach()
    if loss_type == "ecpo":
        largest = torch.log1p(torch.tensor(epsilon + early, device=now.device))
        return torch.where(advantage < 0, (largest - now).clamp(max=0), 0.0)
    chance = log_prob.detach().float()
    other = torch.log1p(-chance.exp().clamp(max=1 - 1e-6))  # log(1 - pi)
    least = torch.where(advantage >= 0, chance, other)
    return (chance - now - least).clamp(max=0)


def _normalised(loss: Tensor, known: Tensor, loss_type: LossType, codes_in_batch: Tensor | float | None) -> Tensor:
    if loss_type in ("grpo", "ecpo", "gbpo", "tpma"):
        return (loss.sum(-1) / known.sum(-1).clamp(min=1)).mean()
    if loss_type == "dr_grpo":
        return loss.sum() / known.numel()
    if loss_type == "dapo" and codes_in_batch is not None:
        return loss.sum() / codes_in_batch
    return loss.sum() / known.sum().clamp(min=1)
