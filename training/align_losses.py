"""The losses that align vectors with a log: pure functions over scores.

InfoNCE: van den Oord, Li, Vinyals, "Representation Learning with Contrastive Predictive Coding"
(https://arxiv.org/abs/1807.03748). OneSearch (https://arxiv.org/abs/2509.03236) adds it up for query-query, item-item
and query-item pairs, with a margin loss that orders shown, clicked and bought items and one that fits graded relevance;
the exact form of these two is not known to us: the hinge and the square here are ours. GCL-MO
(https://arxiv.org/abs/2307.04322) decouples the contrastive loss: a positive is compared with negatives only. Mixed
negatives are those of ESANS (https://arxiv.org/abs/2502.16077).

Scores are cosines, and where a loss is contrastive they are divided by its temperature before they are given.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def info_nce(scores: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """`-log(e^s_p / sum_j e^s_j)`, mean over the positives of a row, then over rows.

    The sum runs over every column that is not ignored; a row's other positives are in it.

    Args:
        scores: (B, M) divided by the temperature.
        positive: (B, M) bool; every row has a positive.
        ignored: (B, M) bool, columns that are neither; where a column is positive too, it counts as positive.

    Returns:
        A scalar.
    """
    total = scores.masked_fill(ignored & ~positive, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    return _mean_of_positives(total - scores, positive)


def decoupled_info_nce(scores: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
    """`-log(e^s_p / (e^s_p + sum_n e^s_n))`, n over the negatives only: the positives of a row do not compete.

    Arguments and means as for `info_nce`; the paper adds up what is averaged here.
    """
    negatives = scores.masked_fill(ignored | positive, -torch.inf).logsumexp(1, keepdim=True)  # (B, 1)
    return _mean_of_positives(nn.functional.softplus(negatives - scores), positive)


def _mean_of_positives(losses: Tensor, positive: Tensor) -> Tensor:
    weight = positive / positive.sum(1, keepdim=True)
    return torch.where(positive, losses * weight, 0).sum(1).mean()


def rank_margin(better: Tensor, worse: Tensor, steps: Tensor, margin: float) -> Tensor:
    """Mean of `max(0, margin * steps - (better - worse))`.

    Args:
        better, worse: (B,) scores of two items under one query; the user went further with the first.
        steps: (B,) how many steps further: shown, clicked, put in the cart, bought.
        margin: of one step.

    Returns:
        A scalar.
    """
    return (margin * steps - (better - worse)).clamp(min=0).mean()


def relevance_fit(scores: Tensor, grades: Tensor) -> Tensor:
    """Mean squared difference of (B,) cosines and (B,) grades between 0 and 1; a scalar."""
    return (scores - grades).square().mean()


def mixed(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """(..., D) unit vectors `share * one + (1 - share) * other` of (..., D) vectors and (...) shares."""
    return nn.functional.normalize(share[..., None] * one + (1 - share[..., None]) * other, dim=-1)


def semantic_loss(
    query: Tensor, item: Tensor, negatives: Tensor, usable: Tensor, shares: Tensor, far: int, temperature: float
) -> Tensor:
    """InfoNCE of a query's item among its semantic negatives and what is mixed from them.

    Args:
        query, item: (B, D) unit vectors.
        negatives: (B, F + H, D) far, then near items.
        usable: (B, F + H) bool; nothing is mixed from one that is not.
        shares: (B, F + H) of the far item before the next far one, and of the right item before a near one.
        far: F.
    """
    distant, close = negatives[:, :far], negatives[:, far:]
    mixtures = [mixed(distant, distant.roll(1, 1), shares[:, :far]), mixed(item[:, None], close, shares[:, far:])]
    mixable = [usable[:, :far] & usable[:, :far].roll(1, 1), usable[:, far:]]
    columns = torch.cat([item[:, None], negatives, *mixtures], dim=1)  # (B, 1 + 2 (F + H), D)
    positive = torch.zeros(columns.shape[:2], dtype=torch.bool, device=columns.device)
    positive[:, 0] = True
    ignored = ~torch.cat([positive[:, :1], usable, *mixable], dim=1)
    return info_nce(torch.einsum("bd,bmd->bm", query, columns) / temperature, positive, ignored)
