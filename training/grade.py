"""Learning a policy of the heads' weights, for each user and query: GRADE (https://arxiv.org/abs/2510.07919).

The paper's: a warm start with LambdaLoss; then G weights are drawn from Dirichlet(alpha(u, q, context)) for each
request, the fused score ranks its list, and the policy learns from group-relative advantages, with a clipped ratio of
Dirichlet densities and a KL term. The reward is posterior (where what was clicked and bought ends up) + prior (what the
heads themselves say) + a rule for the format of the weights.

Our completion, where the exact form is not known:

- posterior: NDCG@10 of the list, a purchase counting twice a click. prior: the same with the predicted purchases as
  gains, at a tenth of the weight, so that a list without feedback teaches little and not nothing.
- format: minus how far the largest weight lies above 0.9 and the smallest below 0.01, ten times. Without it
  the policy may put everything on one head, which `collapse` measures.
- KL is towards the policy that the warm start left, of Dirichlet distributions, in closed form.
- what is read is detached: the towers do not learn.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onesearch.reward.fusion import (
    TINY,
    DirichletPolicy,
    dirichlet_divergence,
    dirichlet_log_density,
    fused,
)
from training.reward_check import Outcomes

DEPTH: Final = 10


@dataclass(frozen=True)
class GradeSettings:
    """How the policy is learnt.

    Attributes:
        warm, steps: batches of LambdaLoss, and of the policy gradient. batch: requests of each.
        group: weights drawn for a request. clip: of the ratio of densities. divergence: weight of the KL.
        prior, format: weights of these parts of the reward. passes: updates from one draw.
    """

    warm: int = 150
    steps: int = 200
    batch: int = 256
    group: int = 16
    rate: float = 1e-3
    clip: float = 0.2
    divergence: float = 0.02
    prior: float = 0.1
    format: float = 1.0
    passes: int = 2


def learn_policy(
    policy: DirichletPolicy,
    outcomes: Outcomes,
    weights: Sequence[float],
    seed: int = 0,
    settings: GradeSettings = GradeSettings(),
) -> list[float]:
    """Learn the policy in place from lists, beginning with the fixed weights; the mean reward of each step."""
    policy.requires_grad_(True)
    policy.start_at(torch.tensor(weights) / sum(weights))
    random = torch.Generator().manual_seed(seed)
    lists = _Lists.of(outcomes)
    optimizer = torch.optim.Adam(policy.parameters(), lr=settings.rate)
    for _ in range(settings.warm):
        rows = torch.randint(len(lists.context), (settings.batch,), generator=random)
        some = lists.take(rows)
        loss = lambda_loss(fused(some.probabilities, policy.mean(some.context)), some.gain, some.there)
        _step(optimizer, loss)
    reference = copy.deepcopy(policy).requires_grad_(False)
    rewards: list[float] = []
    for _ in range(settings.steps):
        rows = torch.randint(len(lists.context), (settings.batch,), generator=random)
        some = lists.take(rows)
        with torch.no_grad():
            old = policy(some.context).unsqueeze(1).expand(-1, settings.group, -1)
            gamma = torch._standard_gamma(old, generator=random)
            drawn = (gamma / gamma.sum(-1, keepdim=True)).clamp(min=TINY)
            before = dirichlet_log_density(drawn, old)
            reward = list_reward(some, drawn, settings)
            spread = reward.std(1, keepdim=True)
            advantage = torch.where(spread > 1e-6, (reward - reward.mean(1, keepdim=True)) / (spread + 1e-6), 0)
            rewards.append(float(reward.mean()))
            anchor = reference(some.context)
        for _ in range(settings.passes):
            now = policy(some.context)
            ratio = (dirichlet_log_density(drawn, now.unsqueeze(1).expand_as(drawn)) - before).exp()
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
            _step(optimizer, settings.divergence * dirichlet_divergence(now, anchor).mean() - gain)
    policy.requires_grad_(False)
    return rewards


@dataclass(frozen=True)
class _Lists:
    """probabilities (Q, K, 4), gain (Q, K), there (Q, K), context (Q, C)."""

    probabilities: Tensor
    gain: Tensor
    there: Tensor
    context: Tensor

    @classmethod
    def of(cls, outcomes: Outcomes) -> _Lists:
        arrays = (outcomes.probabilities.astype(np.float32), outcomes.gain, outcomes.there, outcomes.context)
        return cls(*map(torch.from_numpy, arrays))

    def take(self, rows: Tensor) -> _Lists:
        return _Lists(self.probabilities[rows], self.gain[rows], self.there[rows], self.context[rows])


def list_reward(lists: _Lists, weights: Tensor, settings: GradeSettings) -> Tensor:
    """(Q, G) reward of weights (Q, G, 4): posterior, prior and format."""
    scores = torch.stack([fused(lists.probabilities, one) for one in weights.unbind(1)], 1)
    scores = scores.masked_fill(~lists.there.unsqueeze(1), -torch.inf)
    posterior = list_ndcg(scores, lists.gain.unsqueeze(1))
    expected = (lists.probabilities[..., 0] + lists.probabilities[..., 2]) * lists.there
    prior = list_ndcg(scores, expected.unsqueeze(1))
    return posterior + settings.prior * prior - settings.format * format_penalty(weights)


def format_penalty(weights: Tensor) -> Tensor:
    """(...) how far weights (..., 4) are from a proper mixture: none above .9, none below .01."""
    return 10 * ((weights.amax(-1) - 0.9).clamp(min=0) + (0.01 - weights.amin(-1)).clamp(min=0))


def list_ndcg(scores: Tensor, gain: Tensor, k: int = DEPTH) -> Tensor:
    """(Q, G) NDCG@k of lists with scores (Q, G, K) and gains (Q, 1, K); 0 where nothing is to be gained."""
    wide = min(k, scores.shape[-1])
    discount = 1 / torch.log2(torch.arange(wide, dtype=gain.dtype, device=gain.device) + 2)
    order = scores.topk(wide, -1).indices
    found = (gain.expand_as(scores).gather(-1, order) * discount).sum(-1)
    best = (gain.topk(wide, -1).values * discount).sum(-1)
    return torch.where(best > 0, found / best.clamp(min=1e-9), 0)


def lambda_loss(scores: Tensor, gain: Tensor, there: Tensor) -> Tensor:
    """() LambdaLoss (Wang et al., CIKM 2018): pairs by the change of NDCG that exchanging them makes.

    Args:
        scores: (Q, K). gain: (Q, K). there: (Q, K) where there is an item.
    """
    masked = scores.masked_fill(~there, -torch.inf)
    rank = masked.argsort(-1, descending=True).argsort(-1)
    discount = 1 / torch.log2(rank.to(gain.dtype) + 2)
    best = (gain.sort(-1, descending=True).values * discount.sort(-1, descending=True).values).sum(-1)
    change = (gain.unsqueeze(2) - gain.unsqueeze(1)).abs() * (discount.unsqueeze(2) - discount.unsqueeze(1)).abs()
    better = (gain.unsqueeze(2) > gain.unsqueeze(1)) & there.unsqueeze(2) & there.unsqueeze(1)
    gap = scores.unsqueeze(2) - scores.unsqueeze(1)
    spread = scores.detach().masked_fill(~there, 0).std().clamp(min=1e-3)
    pairs = change / best.clamp(min=1e-9)[:, None, None] * F.softplus(-gap / spread)
    return torch.where(better, pairs, 0).sum() / max(len(scores), 1)


def collapse(policy: DirichletPolicy, context: Tensor) -> float:
    """The mean over requests of the largest weight: 1 where one head has everything, 1/4 where all are equal."""
    with torch.no_grad():
        return float(policy.mean(context).amax(-1).mean())


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
