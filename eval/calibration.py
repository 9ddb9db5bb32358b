"""Whether predicted probabilities come true: ECE, PCOC and field-ECE, with bootstrap draws of whole users.

- ECE (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015): pairs in bins by
  their prediction; the mean over pairs of |share that was right - mean prediction| of their bin. Bins have equal
  numbers of pairs, not equal width: where one pair in a hundred is right, nearly all predictions would share one bin.
- PCOC, predicted over observed: the sum of the predictions over the number of right pairs; 1 is best.
- field-ECE (Pan et al., "Field-aware Calibration", WWW 2020, https://arxiv.org/abs/1905.10713): ECE with the values of
  a field (the category of the item, say) for bins, whatever the predictions.

Bins are made once, from all pairs, and stay as they are in every draw. Sums of absolute values are never below 0, so
noise makes ECE and field-ECE larger, in the draws as in the value itself: with few pairs a bin their intervals lie
somewhat high.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from eval.metrics import Bootstrap, Drawn

BINS: Final = 100
FEWEST: Final = 50
"""Pairs a bin; with fewer pairs there are fewer bins."""


@dataclass(frozen=True)
class Reliability:
    """Bins by rising prediction: (b,) mean prediction, share that was right, and number of pairs."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    pairs: NDArray[np.int64]


def equal_bins(predicted: NDArray[np.floating], bins: int = BINS) -> NDArray[np.int64]:
    """(P,) the bin of each prediction, numbers from 0: equally full, as far as equal predictions, which share a bin,
    allow.

    >>> equal_bins(np.repeat([0.1, 0.2, 0.9], [60, 40, 100]), bins=2).tolist() == [0] * 100 + [1] * 100
    True
    """
    most = max(1, min(bins, len(predicted) // FEWEST))
    ordered = np.sort(predicted)
    starts = np.unique(ordered[np.arange(1, most) * len(ordered) // most])
    return np.unique(np.searchsorted(starts, predicted, side="right"), return_inverse=True)[1]


def reliability(predicted: NDArray[np.floating], right: NDArray[np.bool_], bin_of: NDArray[np.int64]) -> Reliability:
    """What each bin predicts and what came true."""
    pairs = np.bincount(bin_of)
    return Reliability(np.bincount(bin_of, predicted) / pairs, np.bincount(bin_of, right) / pairs, pairs)


def calibration_error(
    predicted: NDArray[np.floating],
    right: NDArray[np.bool_],
    bin_of: NDArray[np.int64],
    row: NDArray[np.int64],
    draws: Bootstrap,
) -> Drawn:
    """ECE with `equal_bins` for bins, field-ECE with the values of a field.

    Args:
        predicted: (P,) probabilities. right: (P,). bin_of: (P,) numbers from 0.
        row: (P,) the query of each pair, by the order of `draws`.
    """
    user, users = draws.group[row], draws.drawn.shape[1]
    shape = (int(bin_of.max()) + 1, users)
    gap = sparse.csr_matrix((right - predicted.astype(np.float64), (bin_of, user)), shape)
    pairs = draws.drawn @ np.bincount(user, minlength=users)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.abs(gap @ draws.drawn.T).sum(axis=0) / pairs
    return Drawn(float(np.abs(np.asarray(gap.sum(axis=1))).sum() / len(predicted)), found)


def predicted_over_observed(
    predicted: NDArray[np.floating], right: NDArray[np.bool_], row: NDArray[np.int64], draws: Bootstrap
) -> Drawn:
    """PCOC; nan where nothing is right."""
    queries = len(draws.group)
    return draws.ratio(
        np.bincount(row, predicted.astype(np.float64), minlength=queries), np.bincount(row, right, minlength=queries)
    )
