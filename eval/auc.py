"""AUC of all pairs, and within groups (gAUC), with bootstrap draws of whole users. Equal scores count one half.

AUC is the probability that a right pair has a higher score than a wrong one. The value is scikit-learn's. In a draw
every pair counts as often as its user was drawn, and because the order of the scores never changes, all draws come out
of one sort and sparse products: no draw sorts again.

gAUC (Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", 2017, https://arxiv.org/abs/1703.02091) is
the mean of the AUC of each group, weighted by its number of pairs. Groups with right or wrong pairs only have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.metrics import roc_auc_score

from eval.metrics import Bootstrap, Drawn

_CELLS: Final = 8_000_000
"""Of a block of draws: 64 MB."""


def auc(scores: NDArray[np.floating], right: NDArray[np.bool_], row: NDArray[np.int64], draws: Bootstrap) -> Drawn:
    """The AUC of P pairs; nan where all are right or none is, as in a draw of which that is true.

    Args:
        scores: (P,), may be infinite. right: (P,). row: (P,) the query of each pair, by the order of `draws`.
    """
    if right.all() or not right.any():
        return Drawn(float("nan"), np.full(len(draws.drawn), np.nan))
    places = np.unique(scores, return_inverse=True)[1]  # scikit-learn takes no infinite scores
    return Drawn(float(roc_auc_score(right, places)), _drawn_auc(places, right, draws.group[row], draws.drawn))


def _drawn_auc(
    scores: NDArray[np.int64], right: NDArray[np.bool_], user: NDArray[np.int64], drawn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(R,) the AUC of each draw.

    The T distinct scores of right pairs cut the line into 2T + 1 parts: the points themselves (odd numbers) and what
    lies between them (even). A draw's wrong pairs are counted by part; a right pair beats all parts before its own.
    """
    points, at = np.unique(scores[right], return_inverse=True)
    wrong = scores[~right]
    part = np.searchsorted(points, wrong, side="left") + np.searchsorted(points, wrong, side="right")
    users = drawn.shape[1]
    rights = _counts(at, user[right], len(points), users)
    wrongs = _counts(part, user[~right], 2 * len(points) + 1, users)
    found = np.empty(len(drawn))
    size = max(1, _CELLS // wrongs.shape[0])
    for start in range(0, len(drawn), size):
        times = drawn[start : start + size].T
        of_point, of_part = rights @ times, wrongs @ times  # (T, r), (2T + 1, r)
        below = np.cumsum(of_part, axis=0)[:-1:2]
        beaten = (of_point * (below + of_part[1::2] / 2)).sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[start : start + size] = beaten / (of_point.sum(axis=0) * of_part.sum(axis=0))
    return found


def _counts(part: NDArray[np.int64], user: NDArray[np.int64], parts: int, users: int) -> sparse.csr_matrix:
    """(parts, users) how many pairs of each user lie in each part."""
    return sparse.csr_matrix((np.ones(len(part)), (part, user)), (parts, users))  # equal places are summed


@dataclass(frozen=True)
class GroupAuc:
    """gAUC, and how many groups of all it is the mean of."""

    drawn: Drawn
    counted: int
    groups: int


def group_auc(
    scores: NDArray[np.floating],
    right: NDArray[np.bool_],
    group: NDArray[np.int64],
    row: NDArray[np.int64],
    draws: Bootstrap,
) -> GroupAuc:
    """The gAUC of P pairs.

    Args:
        group: (P,) numbers from 0; a group lies within one user.
        scores, right, row: as for `auc`.
    """
    values, pairs = aucs_of_groups(scores, right, group)
    query = np.zeros(len(values), np.int64)
    query[group] = row  # any query of the group: all are of one user
    counted = np.isfinite(values)
    weight, weighted = np.zeros(len(draws.group)), np.zeros(len(draws.group))
    np.add.at(weight, query[counted], pairs[counted])
    np.add.at(weighted, query[counted], pairs[counted] * values[counted])
    return GroupAuc(draws.ratio(weighted, weight), int(counted.sum()), int((pairs > 0).sum()))


def aucs_of_groups(
    scores: NDArray[np.floating], right: NDArray[np.bool_], group: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(G,) the AUC of each group, nan where it has none, and (G,) its number of pairs.

    >>> aucs_of_groups(np.array([3.0, 1.0, 1.0, 5.0]), np.array([True, False, True, True]), np.array([0, 0, 0, 1]))
    (array([0.75,  nan]), array([3, 1]))
    """
    groups = int(group.max()) + 1 if len(group) else 0
    order = np.lexsort((scores, group))
    score, of = scores[order], group[order]
    new = np.ones(len(order), bool)
    new[1:] = (score[1:] != score[:-1]) | (of[1:] != of[:-1])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    rank = np.empty(len(order))
    rank[order] = ((first + last) / 2)[np.cumsum(new) - 1]  # equal scores share the mean of their ranks
    pairs = np.bincount(group, minlength=groups)
    begin = np.cumsum(pairs) - pairs
    rights = np.bincount(group[right], minlength=groups).astype(np.float64)
    total = np.bincount(group[right], weights=rank[right] - begin[group[right]], minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total - rights * (rights - 1) / 2) / (rights * (pairs - rights)), pairs
