"""A monotone calibrator: scores become probabilities that come true, and keep their order.

UMC (https://arxiv.org/abs/2504.14243), which builds on unconstrained monotonic networks
(https://arxiv.org/abs/1908.05164). With z = logit(p), detached, the calibrated logit is

    e^{w(h)} [ integral from 0 to z of (ELU(g(t, h)) + 1) dt + b0 ] + b(h),

increasing in z as what is integrated is positive. The paper's: h are detached feature embeddings; g is an MLP [50, 50]
with ReLU, w and b are MLPs [200, 200], the integral has 50 steps; the loss is BCE + .01 SCLoss, where SCLoss adds up
n_b (acc_b - conf_b)^2 over 10 bins of predictions with moving averages (.95) of what is in a bin.

Ours: without h, g is looked at in 257 fixed knots and the integral is the area under the straight lines between them.
A sum of positive areas cannot fall, so the order, and with it the AUC, stays exactly as it was, which quadrature
points that move with z do not promise. Beyond the last knots the logit goes on in a straight line. e^w is a learnt
number where there is no h. Every MLP begins with a last layer of 0, so that the calibrator begins as z + b: it changes
only what the data ask for. SCLoss takes shares of rows in place of counts n_b, so that it does not grow with the batch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

REACH: Final = 16.0
"""Logits beyond it are continued in a straight line."""

LEAST: Final = 1e-4
"""The density is never smaller (ours): the order is kept in floating-point numbers too."""

KNOTS: Final = 257
STEPS: Final = 50
BINS: Final = 10


class MonotoneCalibrator(nn.Module):
    """Maps logits to calibrated logits.

    Args:
        field: width of h; 0 for the calibrator that keeps the order of all rows, instead of those of equal h.
    """

    def __init__(self, field: int = 0) -> None:
        super().__init__()
        self.field = field
        self.slope = _mlp(1 + field, 50)
        self.scale = _mlp(field, 200) if field else None
        self.shift = _mlp(field, 200) if field else None
        self.stretch, self.bias = (nn.Parameter(torch.zeros(1)) for _ in range(2))

    def forward(self, logits: Tensor, field: Tensor | None = None) -> Tensor:
        """(n,) logits, (n, field) h -> (n,) calibrated logits; float64 keeps apart what float32 would tie."""
        rise = self._rise(logits, field)
        found = self.stretch.exp().to(rise) * (rise + self.bias.to(rise))
        if self.scale is None or self.shift is None:
            return found
        return self.scale(field).squeeze(-1).exp() * found + self.shift(field).squeeze(-1)

    def _rise(self, logits: Tensor, field: Tensor | None) -> Tensor:
        """The integral from 0 to each logit."""
        if self.field:
            if field is None:
                raise ValueError("this calibrator reads field vectors")
            middle = (torch.arange(STEPS, device=logits.device, dtype=logits.dtype) + 0.5) / STEPS
            at = logits.unsqueeze(-1) * middle  # (n, STEPS)
            given = torch.cat([at.unsqueeze(-1), field.unsqueeze(1).expand(-1, STEPS, -1)], -1)
            return logits * self._density(given).mean(-1)
        knots = torch.linspace(-REACH, REACH, KNOTS, device=logits.device, dtype=logits.dtype)
        density = self._density(knots.unsqueeze(-1)).to(logits.dtype)
        step = 2 * REACH / (KNOTS - 1)
        area = step * (density[1:] + density[:-1]) / 2
        below = F.pad(area.cumsum(0), (1, 0))
        below = below - below[KNOTS // 2]  # the middle knot is 0
        place = ((logits + REACH) / step).floor().clamp(0, KNOTS - 2).long()
        return below[place] + (logits - knots[place]) / step * area[place]

    def _density(self, given: Tensor) -> Tensor:
        """What is integrated: ELU(g) + 1 as e^g below 0, where adding 1 to -1 would leave nothing, and never so little
        that a difference of logits is rounded away."""
        slope = self.slope(given.to(self.bias.dtype)).squeeze(-1)
        return torch.where(slope > 0, slope + 1, slope.clamp(max=0).exp()).clamp(min=LEAST)


class SmoothCalibration(nn.Module):
    """SCLoss: how far the mean prediction and the share of positives of each bin lie apart, squared.

    Moving averages of earlier batches steady the bins; the gradient comes from the predictions of this batch.
    """

    sums: Tensor
    batches: Tensor

    def __init__(self, keep: float = 0.95) -> None:
        super().__init__()
        self.keep = keep
        self.register_buffer("sums", torch.zeros(3, BINS))  # positives, predictions, rows
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, probability: Tensor, label: Tensor) -> Tensor:
        """(n,) probabilities and labels in [0, 1] -> ()."""
        place = (probability.detach() * BINS).long().clamp(0, BINS - 1)
        values = torch.stack([label, probability, torch.ones_like(label)]) / len(label)
        now = torch.zeros_like(self.sums).index_add(1, place, values)
        first = bool(self.batches == 0)
        sums = now if first else self.keep * self.sums + (1 - self.keep) * now
        self.sums, self.batches = sums.detach(), self.batches + 1
        positives, predicted, rows = sums
        return (rows * ((positives - predicted) / rows.clamp(min=1e-6)).square()).sum()


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    last = nn.Linear(hidden, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last)
