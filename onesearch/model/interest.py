"""The interest head: one vector of what the user wants next, near the vectors of the items that answer it.

The action loss of KARMA (https://arxiv.org/abs/2603.22779): h is projected from a hidden state, s = cos(h, e) / t, and
the loss is the cross-entropy of the item that followed. The head is for any model with hidden states; what an item's
vector e is made of is the model's business. Where the paper takes shown items and easy ones for negatives, ours are all
items, or with `negatives` a uniform draw of them beside the batch's targets, corrected for how likely each was drawn
(Bengio and Senecal, "Adaptive importance sampling", 2008).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onesearch.model.contrastive import Bonus, softmax_loss


class InterestHead(nn.Module):
    """h = P(hidden), of unit length.

    Args:
        hidden: width of the hidden states.
        width: D of the items' vectors.
        temperature: t.
        negatives: how many items are drawn a step; 0 for all items.
    """

    def __init__(self, hidden: int, width: int, temperature: float, negatives: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(hidden, width)
        self.scale, self.negatives = 1 / temperature, negatives

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) hidden states -> (..., D) interest vectors."""
        return F.normalize(self.project(hidden).float(), dim=-1)

    def loss(
        self, interest: Tensor, items: Tensor, target: Tensor, weight: Tensor, bonus: Bonus | None = None
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum () of the action loss, and (P,) nats of each without a gradient.

        Args:
            interest: (P, D) interest vectors. items: (N, D) unit vectors of the items. target: (P,) items.
            weight: (P,) what each counts.
            bonus: added to the logits of some rows of `interest` and items.
        """
        if not self.negatives or not self.training or self.negatives >= len(items):
            return softmax_loss(interest, items, target, weight, self.scale, bonus=bonus)
        named = target if bonus is None else torch.cat([target, bonus.column])
        kept, where = named.unique(return_inverse=True)
        place = where[: len(target)]
        if bonus is not None:
            bonus = Bonus(bonus.row, where[len(target) :], bonus.value)
        drawn = torch.randint(len(items), (self.negatives,), device=target.device)
        drawn = drawn[~torch.isin(drawn, kept)].unique()  # what the batch names is there already
        chance = torch.full((len(kept) + len(drawn),), 0.0, device=target.device)
        chance[len(kept) :] = -torch.log1p(
            torch.tensor(-((1 - 1 / len(items)) ** self.negatives))
        )  # drawn at least once
        return softmax_loss(interest, items[torch.cat([kept, drawn])], place, weight, self.scale, chance, bonus)
