"""Terms of the loss of supervised fine-tuning, each a pure function over the logits of P label positions.

OneSearch-V2 (https://arxiv.org/abs/2603.24422) adds them up as L = L_CE(focal) + a_KL L_KL + a_R L_R-Drop + L_adv, with
focal alpha = 2 and gamma = 3, tau = 1, a_KL = .1, a_R = .5, eps = .6. The logits of a position are those of the codes
of its level, or of the whole vocabulary where the label is text.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits: Tensor, target: Tensor, alpha: float = 1.0, gamma: float = 0.0) -> Tensor:
    """(P, M) logits, (P,) targets -> (P,) -alpha (1 - p)^gamma log p; the focal loss (https://arxiv.org/abs/1708.02002),
    which is the plain one at the defaults.

    >>> half = torch.tensor([[0.0, 0.0]])
    >>> [round(float(cross_entropy(half, torch.tensor([1]), *with_)), 4) for with_ in ((), (2.0, 3.0))]
    [0.6931, 0.1733]
    """
    log_prob = -F.cross_entropy(logits, target, reduction="none")
    if gamma == 0:
        return -alpha * log_prob
    return -alpha * (1 - log_prob.exp()).clamp(min=0) ** gamma * log_prob


def distillation(student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """(P, M) twice -> (P,) tau^2 KL(softmax(teacher / tau) || softmax(student / tau)); the teacher is detached."""
    goal = (teacher.detach() / tau).log_softmax(-1)
    return tau**2 * F.kl_div((student / tau).log_softmax(-1), goal, reduction="none", log_target=True).sum(-1)


def r_drop(one: Tensor, other: Tensor) -> Tensor:
    """(P, M) twice, of two passes with other dropout -> (P,) the mean of both Kullback-Leibler divergences
    (https://arxiv.org/abs/2106.14448)."""
    one, other = one.log_softmax(-1), other.log_softmax(-1)
    return ((one.exp() - other.exp()) * (one - other)).sum(-1) / 2


def adversarial_step(gradient: Tensor, epsilon: float) -> Tensor:
    """r = eps g / ||g||, by which FGM (https://arxiv.org/abs/1605.07725) moves embeddings before its second backward
    pass; zero where the gradient is zero."""
    norm = torch.linalg.vector_norm(gradient)
    return epsilon * gradient / norm if norm > 0 else torch.zeros_like(gradient)


def example_mean(values: Tensor, example: Tensor, examples: int) -> Tensor:
    """(P,) values and the example of each -> the mean over examples of each one's mean.

    An example counts as one however long its answer is, and several processes with a share of the batch each average
    to what one gets.
    """
    count = torch.bincount(example, minlength=examples).clamp(min=1)
    return (values / count[example]).sum() / examples
