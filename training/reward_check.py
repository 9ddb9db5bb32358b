"""What a reward model says of held-out lists, and how good that is: order (AUC, gAUC, NDCG) and calibration (ECE)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from sklearn.metrics import roc_auc_score

from onesearch.reward.fusion import HEADS, fused
from onesearch.reward.levels import LEVELS
from onesearch.reward.model import RewardNetwork
from training.lists import Ints
from training.reward_batches import RewardBatches

Floats = NDArray[np.float32]
BLOCK: Final = 512
BINS: Final = 10


@dataclass(frozen=True)
class Outcomes:
    """Q lists of K items as a model sees them, and what happened.

    Attributes:
        user: (Q,). items: (Q, K), -1 in empty places. levels: (Q, K). labels: (Q, K, 3) click, both, relevance.
        logits: (Q, K, 3) of the network. probabilities: (Q, K, 4) of `HEADS`. context: (Q, 2 D).
    """

    user: NDArray[np.int32]
    items: Ints
    levels: Floats
    labels: Floats
    logits: Floats
    probabilities: Floats
    context: Floats

    @property
    def there(self) -> NDArray[np.bool_]:
        """(Q, K) where there is an item."""
        return self.items >= 0

    @property
    def gain(self) -> Floats:
        """(Q, K) 1 for a click, 2 for a purchase, 0 in empty places."""
        return np.where(self.there, self.labels[..., 0] + self.labels[..., 1], 0).astype(np.float32)

    def label(self, head: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(Q, K) what a head foretells, and the rows that it is asked for: a conversion follows a click."""
        click, both = self.labels[..., 0] > 0, self.labels[..., 1] > 0
        if head == "click":
            return click, self.there
        return both, self.there & click if head == "conversion" else self.there

    def rewards(self, weights: NDArray[np.floating]) -> Floats:
        """(Q, K) rewards by weights (4,) or (Q, 4); -inf in empty places, so that they rank last."""
        found = fused(torch.from_numpy(self.probabilities), torch.as_tensor(weights, dtype=torch.float32)).numpy()
        return np.where(self.there, found, -np.inf)

    def calibrated(self, network: RewardNetwork) -> Outcomes:
        """The same with the probabilities of the network as it is now."""
        with torch.inference_mode():
            found = [
                network.probabilities(torch.from_numpy(logits), torch.from_numpy(items)).numpy()
                for logits, items in _blocks(self.logits, self.items)
            ]
        return replace(self, probabilities=np.concatenate(found))


@torch.inference_mode()
def judged_lists(network: RewardNetwork, batches: RewardBatches, events: Ints) -> Outcomes:
    """The lists of events (Q,) as the network judges them; it keeps the vectors of its items."""
    network.eval()
    parts = []
    for (some,) in _blocks(events):
        requests, items, levels, labels, given = batches.requests(some)
        output = network(**given)
        found = network.probabilities(output.logits, given["items"])
        parts.append((requests.user, items, levels, labels, output.logits, found, output.context))
    return Outcomes(*(np.concatenate([np.asarray(one[place]) for one in parts]) for place in range(7)))


def summary(network: RewardNetwork, before: Outcomes, after: Outcomes) -> dict[str, Any]:
    """The figures of held-out lists, as JSON values.

    Args:
        before, after: as the network judges them without and with its calibrators.
    """
    values: dict[str, Any] = {"lists": len(after.items), "rows": int(after.there.sum())}
    user = np.broadcast_to(after.user[:, None], after.items.shape)
    for place, head in enumerate(HEADS[:3]):
        label, rows = after.label(head)
        raw, now = before.probabilities[..., place], after.probabilities[..., place]
        values |= {
            f"{head}_rate": float(label[rows].mean()) if rows.any() else float("nan"),
            f"{head}_auc": auc(label[rows], raw[rows]),
            f"{head}_gauc": list_auc(label, raw, rows),
            f"{head}_user_gauc": grouped_auc(label[rows], raw[rows], user[rows]),
            f"{head}_ece": expected_error(label[rows], raw[rows]),
            f"{head}_ece_calibrated": expected_error(label[rows], now[rows]),
            f"{head}_pcoc": ratio(label[rows], raw[rows]),
            f"{head}_pcoc_calibrated": ratio(label[rows], now[rows]),
            f"{head}_auc_calibrated": auc(label[rows], now[rows]),
        }
    fit = after.labels[..., 2][after.there]
    said = after.probabilities[..., 3][after.there]
    values["relevance_correlation"] = float(np.corrcoef(fit, said)[0, 1]) if len(fit) > 1 else float("nan")
    weights = np.asarray(network.config.fusion, np.float32)
    rewards = after.rewards(weights)
    values["fusion"] = [float(one) for one in weights]
    values["reward_ndcg"] = ndcg(after, rewards)
    values["both_ndcg"] = ndcg(after, after.rewards(np.array([0, 0, 1, 0])))
    if network.policy is not None:
        with torch.inference_mode():
            of_each = network.policy.mean(torch.from_numpy(after.context)).numpy()
        values["policy_ndcg"] = ndcg(after, after.rewards(of_each))
        values["policy_weights"] = [float(one) for one in of_each.mean(0)]
    values["reward_by_level"] = {
        str(level): float(rewards[chosen].mean())
        for level in LEVELS
        if (chosen := after.there & np.isclose(after.levels, level)).any()
    }
    return values


def summary_table(values: dict[str, Any]) -> Table:
    """The figures for people."""
    columns = ("", "rate", "AUC", "gAUC", "by user", "ECE", "then", "PCOC", "then")
    table = Table(*columns, box=SIMPLE_HEAD, title=f"{values['lists']:,} held-out lists; calibrated, “then”")
    for head in HEADS[:3]:
        names = ("rate", "auc", "gauc", "user_gauc", "ece", "ece_calibrated", "pcoc", "pcoc_calibrated")
        table.add_row(head, *(f"{values[f'{head}_{name}']:.4f}" for name in names))
    table.caption = f"NDCG of the reward {values['reward_ndcg']:.4f}, of the purchase alone {values['both_ndcg']:.4f}"
    return table


def auc(label: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Area under the ROC curve of rows (n,); nan where all rows are alike."""
    return float(roc_auc_score(label, score)) if label.any() and not label.all() else float("nan")


def list_auc(label: NDArray[np.bool_], score: NDArray[np.floating], rows: NDArray[np.bool_]) -> float:
    """Mean over lists (Q, K) with both kinds of rows of the share of pairs that are in the right order; a tie is half.

    >>> list_auc(np.array([[True, False, False]]), np.array([[0.5, 0.9, 0.1]]), np.ones((1, 3), bool))
    0.5
    """
    positive, negative = label & rows, ~label & rows
    pairs = positive[:, :, None] & negative[:, None]
    right = (score[:, :, None] > score[:, None]) + 0.5 * (score[:, :, None] == score[:, None])
    count = pairs.sum((1, 2))
    told = count > 0
    return float(((right * pairs).sum((1, 2))[told] / count[told]).mean()) if told.any() else float("nan")


def grouped_auc(label: NDArray[np.bool_], score: NDArray[np.floating], group: NDArray[np.integer]) -> float:
    """Mean AUC of the groups of rows (n,) that have both kinds, weighted by their rows (gAUC of DIN, 1706.06978)."""
    order = np.argsort(group, kind="stable")
    edges = np.flatnonzero(np.diff(group[order])) + 1
    found = [
        (len(one), auc(label[one], score[one]))
        for one in np.split(order, edges)
        if label[one].any() and not label[one].all()
    ]
    if not found:
        return float("nan")
    sizes, values = np.array(found).T
    return float((sizes * values).sum() / sizes.sum())


def expected_error(label: NDArray[np.bool_], probability: NDArray[np.floating], bins: int = BINS) -> float:
    """ECE: the mean gap of prediction and truth over bins of equal width, weighted by their rows.

    >>> expected_error(np.array([True, False, False, False]), np.array([0.75, 0.75, 0.0, 0.0])).__round__(3)
    0.125
    """
    if not len(label):
        return float("nan")
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, probability.astype(np.float64) - label, bins)
    return float(np.abs(gap).sum() / len(label))


def ratio(label: NDArray[np.bool_], probability: NDArray[np.floating]) -> float:
    """PCOC: the mean prediction over the share of positives; 1 is right."""
    return float(probability.mean() / label.mean()) if label.any() else float("nan")


def ndcg(outcomes: Outcomes, scores: NDArray[np.floating], k: int = 10) -> float:
    """Mean NDCG@k, see `ndcg_of_lists`; nan where there is no list to measure with."""
    found = ndcg_of_lists(outcomes, scores, k)
    return float(found.mean()) if len(found) else float("nan")


def ndcg_of_lists(outcomes: Outcomes, scores: NDArray[np.floating], k: int = 10) -> NDArray[np.float64]:
    """(q,) NDCG@k of the lists in which something was clicked or bought, a purchase counting twice a click.

    Equal scores share what their places gain, as in McSherry and Najork (ECIR 2008) and scikit-learn.
    """
    told = informative(outcomes)
    gain = outcomes.gain[told]
    lowest = np.where(outcomes.there[told], scores[told], -1e9)
    discount = np.zeros(gain.shape[1])
    discount[:k] = 1 / np.log2(np.arange(min(k, gain.shape[1])) + 2)
    order = np.argsort(-lowest, axis=1, kind="stable")
    ranked, sorted_gain = np.take_along_axis(lowest, order, 1), np.take_along_axis(gain, order, 1)
    row = np.arange(len(gain))[:, None] * gain.shape[1]
    new = np.ones(ranked.shape, bool)
    new[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    tie = np.cumsum(new, 1) - 1 + row  # which run of equal scores a place belongs to
    size = np.bincount(tie.ravel(), minlength=tie.size)
    total = np.bincount(tie.ravel(), np.broadcast_to(discount, tie.shape).ravel(), tie.size)
    found = (sorted_gain * (total / np.maximum(size, 1))[tie]).sum(1)
    best = (-np.sort(-gain, axis=1) * discount).sum(1)
    return np.asarray(found / best)


def informative(outcomes: Outcomes) -> NDArray[np.bool_]:
    """(Q,) which lists can tell orders apart: something was clicked or bought, and there is more than one item."""
    return np.asarray(outcomes.gain.any(1) & (outcomes.there.sum(1) > 1))


def _blocks(*arrays: NDArray[Any]) -> list[tuple[NDArray[Any], ...]]:
    return [tuple(one[start : start + BLOCK] for one in arrays) for start in range(0, len(arrays[0]), BLOCK)]
