"""What is fitted on held-out lists after a reward model's towers: its calibrators, and fixed weights of its heads."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch.nn import functional as F

from onesearch.reward.calibration import SmoothCalibration
from onesearch.reward.fusion import HEADS
from onesearch.reward.model import RewardNetwork, raw_logits
from training.reward_check import Outcomes, ndcg_of_lists

BATCH: Final = 16_384
FIELD_BATCH: Final = 1024
"""Rows a step of a calibrator that reads a field (ours): each of them costs as much as 50 of the other's."""

RATE: Final = 1e-3
SMOOTH: Final = 0.01
"""Weight of SCLoss."""

STEPS: Final = 300
"""Steps of a calibrator: at least, or at most for one that reads a field."""

GRID: Final = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)


def calibrate(network: RewardNetwork, outcomes: Outcomes, epochs: int, seed: int) -> None:
    """Fit the calibrators of click, conversion and both; the towers, and what they find, stay as they are.

    Batch, rate and loss are UMC's (see `onesearch/reward/calibration.py`). Ours: a small log has few batches an epoch,
    so at least `STEPS` steps are made; a calibrator that reads a field has smaller batches, and stops at as many.
    """
    random = torch.Generator().manual_seed(seed)
    raw = raw_logits(torch.from_numpy(outcomes.logits))
    for place, (name, calibrator) in enumerate(network.calibrators.items()):
        label, rows = outcomes.label(name)
        logits = raw[..., place][torch.from_numpy(rows)]
        target = torch.from_numpy(label[rows]).float()
        if not len(target) or target.min() == target.max():
            continue  # nothing to learn: every row is alike
        field = None
        if calibrator.field:
            with torch.no_grad():
                vectors = network.vectors
                if vectors is None:
                    raise RuntimeError("keep_vectors() first")
                field = vectors[torch.from_numpy(outcomes.items[rows])]
        calibrator.requires_grad_(True)
        optimizer = torch.optim.Adam(calibrator.parameters(), lr=RATE)
        smooth = SmoothCalibration()
        size = min(FIELD_BATCH if calibrator.field else BATCH, len(target))
        enough = -(-STEPS // -(-len(target) // size))  # passes that make so many steps
        for _ in range(min(epochs, enough) if calibrator.field else max(epochs, enough)):
            for some in torch.randperm(len(target), generator=random).split(size):
                found = calibrator(logits[some], None if field is None else field[some])
                loss = F.binary_cross_entropy_with_logits(found, target[some])
                loss = loss + SMOOTH * smooth(found.sigmoid(), target[some])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        calibrator.requires_grad_(False)


def choose_weights(outcomes: Outcomes) -> list[float]:
    """Weights of `HEADS` with the highest NDCG, found by coordinates from those of a purchase alone; their sum is 1.

    A change counts only if it gains more than its own standard error: what is as good stays simpler.
    """
    weights = np.array([0.0, 0.0, 1.0, 0.0])
    best = ndcg_of_lists(outcomes, outcomes.rewards(weights))
    for _ in range(2):
        for place in range(len(HEADS)):
            for value in GRID:
                tried = weights.copy()
                tried[place] = value
                if not tried.any():
                    continue
                found = ndcg_of_lists(outcomes, outcomes.rewards(tried))
                gained = found - best
                if gained.mean() > gained.std() / np.sqrt(max(len(gained), 1)):
                    best, weights = found, tried
    return [round(float(one), 6) for one in weights / weights.sum()]
