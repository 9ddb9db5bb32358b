"""From the heads to one reward: fixed weights, or weights for each user and query from a Dirichlet policy.

Fixed weights are those of PARS (OneSearch, https://arxiv.org/abs/2509.03236):
reward = l1 CTR + l2 CVR + l3 CTCVR + 10 l4 S_rel. The policy is that of GRADE (https://arxiv.org/abs/2510.07919):
w ~ Dirichlet(alpha(u, q, context)), and the score is the heads' probabilities weighed by w. How it is learnt is in
`training/grade.py`. Ours: the four heads have the 10 of the relevance in their scale, so that equal weights are those
of PARS; alpha = LEAST + softplus(MLP) stays above 1, where the density has one peak and no pole.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS: Final = ("click", "conversion", "both", "relevance")
"""CTR, CVR, CTCVR and S_rel."""

SCALE: Final = (1.0, 1.0, 1.0, 10.0)
"""What a head's probability counts in the reward of PARS, before its weight."""

LEAST: Final = 1.05
"""No concentration is smaller."""

TINY: Final = 1e-6


def fused(probabilities: Tensor, weights: Tensor) -> Tensor:
    """(Q, K) rewards.

    Args:
        probabilities: (Q, K, 4) of `HEADS`. weights: (4,), or (Q, 4).
    """
    scale = torch.tensor(SCALE, dtype=probabilities.dtype, device=probabilities.device)
    if weights.ndim == 1:
        return probabilities @ (weights.to(probabilities) * scale)
    return torch.einsum("qkh,qh->qk", probabilities, weights.to(probabilities) * scale)


def dirichlet_log_density(weights: Tensor, concentration: Tensor) -> Tensor:
    """(...) log density of weights (..., H) on the simplex:
    log Gamma(sum alpha) - sum log Gamma(alpha) + sum (alpha - 1) log w.

    >>> dirichlet_log_density(torch.tensor([0.2, 0.3, 0.5]), torch.ones(3)).exp().round(decimals=4)
    tensor(2.)
    """
    normaliser = torch.lgamma(concentration.sum(-1)) - torch.lgamma(concentration).sum(-1)
    return normaliser + ((concentration - 1) * weights.clamp(min=TINY).log()).sum(-1)


def dirichlet_divergence(concentration: Tensor, reference: Tensor) -> Tensor:
    """(...) KL(Dirichlet(concentration) || Dirichlet(reference)), both (..., H)."""
    total = concentration.sum(-1)
    change = concentration - reference
    constant = torch.lgamma(total) - torch.lgamma(concentration).sum(-1)
    constant = constant - torch.lgamma(reference.sum(-1)) + torch.lgamma(reference).sum(-1)
    return constant + (change * (torch.digamma(concentration) - torch.digamma(total).unsqueeze(-1))).sum(-1)


class DirichletPolicy(nn.Module):
    """Concentrations (B, 4) from what the towers know of the user and the query.

    Args:
        context: width of what is read. hidden: of the MLP.
    """

    def __init__(self, context: int, hidden: int = 64) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context)
        self.hidden, self.last = nn.Linear(context, hidden), nn.Linear(hidden, len(HEADS))

    def start_at(self, weights: Tensor, strength: float = 8.0) -> None:
        """Begin with one mean for everybody: `weights` (4,) on the simplex; `strength` is the sum above `LEAST`."""
        wanted = (weights * (strength + LEAST * len(HEADS)) - LEAST).clamp(min=1e-2)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.copy_(wanted + torch.log(-torch.expm1(-wanted)))  # the inverse of softplus

    def forward(self, context: Tensor) -> Tensor:
        """(B, context) -> (B, 4), each above 1."""
        return LEAST + F.softplus(self.last(F.gelu(self.hidden(self.norm(context)))))

    def mean(self, context: Tensor) -> Tensor:
        """(B, 4) the weights that are used: the mean of the distribution."""
        concentration = self(context)
        return concentration / concentration.sum(-1, keepdim=True)
