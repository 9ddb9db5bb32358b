"""Choosing settings on validation requests: one setting at a time, round after round, until nothing improves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def coordinate_search(
    objective: Callable[..., float], grid: Mapping[str, Sequence[Any]], start: Mapping[str, Any], rounds: int = 3
) -> dict[str, Any]:
    """The settings of `grid` with the highest `objective(**settings)` that changing one at a time finds.

    >>> coordinate_search(lambda x, y: -abs(x - 2) - abs(y - x), {"x": [0, 1, 2], "y": [0, 1, 2]}, {"x": 0, "y": 0})
    {'x': 0, 'y': 0}
    >>> coordinate_search(lambda x, y: -abs(x - 2) - abs(y - 1), {"x": [0, 1, 2], "y": [0, 1, 2]}, {"x": 0, "y": 0})
    {'x': 2, 'y': 1}
    """
    best = dict(start)
    tried = {tuple(best.values()): objective(**best)}
    for _ in range(rounds):
        before = dict(best)
        for name, values in grid.items():
            for value in values:
                settings = best | {name: value}
                key = tuple(settings.values())
                if key not in tried:
                    tried[key] = objective(**settings)
                    logger.debug("%s -> %.5f", settings, tried[key])
                if tried[key] > tried[tuple(best.values())]:
                    best = settings
        if best == before:
            break
    return best


def reciprocal_rank(better: NDArray[np.integer], ties: NDArray[np.integer] | int = 0, cut: int = 10) -> float:
    """MRR@cut from (Q,) how many candidates beat the target and how many equal it (half of those come before it)."""
    rank = 1 + better + ties / 2
    return float(np.where(rank <= cut, 1 / rank, 0).mean())
