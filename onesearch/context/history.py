"""Which of a user's past purchases the generator sees: the most relevant to the query, with what is known of each.

Query-relevant selection follows QIN's relevance search unit (2310.06444); which history the model sees decides more
than anything else it is given.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onesearch.context.relevance import RelevantTexts
from onesearch.corpus.arrays import same_item_links
from onesearch.corpus.popularity import DAY
from onesearch.corpus.reader import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import Requests
from onesearch.embed.text import unit_rows

FEATURES = (
    "relevance",  # cosine of query and item
    "coverage",  # share of the query's terms that the item has
    "log_count",  # how often bought
    "lately",  # the same, older purchases decayed fast
    "lastingly",  # the same, decayed slowly
    "log_days",  # since the last purchase
    "rhythm",  # overdue or just bought, at the item's own pace
    "fit",  # coverage against the best slot's
    "share_lately",  # of `lately` and `lastingly` among the slots that fit
    "share_lastingly",
    "freshest",  # 1 for the last purchase among the slots that fit, 1/2 for the one before, ...
    "log_past",  # how long the user's history is
)
"""What describes a history slot; the last five compare it with the other slots of the request."""

COMPARED = FEATURES[-5:]

HABIT = FEATURES[2:7]
"""What is known of a user and an item whatever the query."""

FIT_SHARPNESS = 8
"""Exponent of `fit` where slots are compared: half the coverage is no fit."""

HALF_LIVES = (28, 120)
"""Days after which a purchase counts half in the features `lately` and `lastingly`."""

SHORTLIST = 3
"""So many purchases per slot are looked at closely."""

REACH = 4096
"""At most so many past events of a user are looked at, the latest."""


@dataclass(frozen=True)
class HistorySlots:
    """H slots for each of Q requests, the most relevant purchase first.

    Attributes:
        item: (Q, H) int32, -1 where a slot is empty; each item once.
        event: (Q, H) int64, the last event with that item, -1 where empty.
        features: (Q, H, F) float32, `FEATURES`, zero where empty.
        taste: (Q, 2, d) float32 unit vectors, of all that the user bought, and of the slots that fit the query.
    """

    item: NDArray[np.int32]
    event: NDArray[np.int64]
    features: NDArray[np.float32]
    taste: NDArray[np.float32]


class HistorySelector:
    """Selects the history slots of requests; holds (E,) float32 running counts over the log."""

    def __init__(
        self,
        corpus: Corpus,
        texts: RelevantTexts,
        slots: int,
        taste: NDArray[np.float32],
        history: str = "relevant",
    ) -> None:
        """
        Args:
            texts: of the items, in the relevance space.
            slots: H.
            taste: (N, d) vectors of the items.
            history: "relevant"; or to compare with, "recent", the purchases of last, or "none", as if there were none.
        """
        self.corpus, self.texts, self.slots, self.taste = corpus, texts, slots, taste
        self.history = history
        self._next, self._nth = _choices(corpus)
        self._decayed = [_decayed_counts(corpus, self._next, self._nth, days) for days in HALF_LIVES]

    def with_taste(self, taste: NDArray[np.float32]) -> HistorySelector:
        """The same with other (N, d) vectors of the items."""
        other = copy(self)
        other.taste = taste
        return other

    def select(self, requests: Requests, queries: RelevantTexts) -> HistorySlots:
        """The slots of Q requests, given their queries in the relevance space."""
        corpus, total = self.corpus, len(requests)
        if self.history == "none":
            requests = replace(requests, history_end=requests.history_start)
        start = np.maximum(requests.history_start, requests.history_end - REACH)
        length = requests.history_end - start
        row = np.repeat(np.arange(total), length)
        event = np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)
        last = self._next[event] >= requests.history_end[row]
        row, event = row[last], event[last]
        item = corpus.item[event]
        edges = np.searchsorted(row, np.arange(total + 1))
        bought = sparse.csr_matrix((np.ones(len(item), np.float32), item, edges), (total, len(self.taste)))
        relevance = queries.cosine(edges, self.texts, item)
        days = self.days(requests.time[row], event)
        count = self._nth[event] + np.float32(1)
        habit = 0.08 * np.log(count) - 0.02 * np.log1p(days)
        # Coverage costs more than a cosine, so only the likelier purchases are asked for it.
        recent = self.history == "recent"
        near = _latest(edges, self.slots) if recent else _best(row, relevance + habit, SHORTLIST * self.slots)
        coverage = queries.covered(row[near], self.texts, item[near])
        if recent:
            kept = np.arange(len(near))
        else:
            kept = _best(row[near], (relevance + habit)[near] + 2 * coverage, self.slots)
        coverage, near = coverage[kept], near[kept]
        row, event, relevance, days = row[near], event[near], relevance[near], days[near]
        place = np.arange(len(row)) - np.searchsorted(row, row)

        slots = HistorySlots(
            item=np.full((total, self.slots), -1, np.int32),
            event=np.full((total, self.slots), -1, np.int64),
            features=np.zeros((total, self.slots, len(FEATURES)), np.float32),
            taste=np.zeros((total, 2, self.taste.shape[1]), np.float32),
        )
        slots.item[row, place] = corpus.item[event]
        slots.event[row, place] = event
        slots.features[row, place, : -len(COMPARED)] = np.column_stack([relevance, coverage, self.habit(event, days)])
        closeness = _closeness(slots)
        past = requests.history_end - requests.history_start
        slots.features[..., -len(COMPARED) :] = _compared(slots, closeness, past)
        slots.taste[:, 0] = unit_rows(bought @ self.taste)
        slots.taste[:, 1] = unit_rows((closeness[:, None] @ self.taste[slots.item])[:, 0])
        return slots

    def habit(self, event: NDArray[np.int64], days: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, 5) how a user has taken to an item, as of its last event `days` (P,) before now: `HABIT`."""
        lately, lastingly = (
            decayed[event] * np.exp2(-days / half_life)
            for decayed, half_life in zip(self._decayed, HALF_LIVES, strict=True)
        )
        count = self._nth[event] + np.float32(1)
        habit = [np.log(count), np.log1p(lately), np.log1p(lastingly), np.log1p(days) / 4]
        return np.stack([*habit, np.log1p(days * lastingly) / 4], axis=-1).astype(np.float32)

    def days(self, now: NDArray[np.int64], event: NDArray[np.int64]) -> NDArray[np.float32]:
        """Days since the event; where the log has no clock, places in the user's history stand for days."""
        unit = DAY if self.corpus.has_clock else 1
        return (np.maximum(now - self.corpus.time[event], 0) / np.float32(unit)).astype(np.float32)


def _closeness(slots: HistorySlots) -> NDArray[np.float32]:
    """(Q, H) from 0, no fit, to 1, the slot that covers the query best; 0 where empty."""
    coverage = slots.features[..., FEATURES.index("coverage")]
    fit = coverage / np.maximum(coverage.max(1, keepdims=True), 1e-6)
    return (slots.item >= 0) * fit**FIT_SHARPNESS


def _compared(slots: HistorySlots, closeness: NDArray[np.float32], past: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, H, 5) the features in COMPARED, given the others and the (Q,) lengths of the histories."""
    filled = slots.item >= 0
    coverage, lately, lastingly, days = (
        slots.features[..., FEATURES.index(name)] for name in ("coverage", "lately", "lastingly", "log_days")
    )
    fit = coverage / np.maximum(coverage.max(1, keepdims=True), 1e-6)
    shares = [
        weight / np.maximum(weight.sum(1, keepdims=True), 1e-6)
        for weight in (closeness * np.expm1(lately), closeness * np.expm1(lastingly))
    ]
    # How many fitting slots were bought later than this one.
    later = ((days[:, None, :] < days[:, :, None]) * closeness[:, None, :]).sum(2)
    length = np.broadcast_to(np.log1p(past)[:, None] / 8, fit.shape)
    return np.stack([fit, *shares, closeness / (1 + later), length * filled], axis=-1).astype(np.float32)


def _best(row: NDArray[np.int64], score: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Places of the `most` highest scores of each row, best first, row by row."""
    order = np.argsort(row * 16.0 - score, kind="stable")  # one key: scores lie well within (-8, 8)
    row = row[order]
    return order[np.arange(len(row)) - np.searchsorted(row, row) < most]


def _latest(edges: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of the `most` last elements of each row, the last first, row by row; row r is `edges[r]:edges[r + 1]`.

    >>> _latest(np.array([0, 3, 3, 4]), 2).tolist()
    [2, 1, 3]
    """
    place = edges[1:, None] - 1 - np.arange(most)
    return place[place >= edges[:-1, None]]


def _choices(corpus: Corpus) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(E,) `next_same` and `nth_same` of the corpus, but among clicks, carts and purchases alone; -1 at impressions."""
    total = len(corpus.item)
    if corpus.kind.min(initial=len(EVENT_KINDS)) > EVENT_KINDS.index("impression"):
        return corpus.next_same, corpus.nth_same
    next_same, nth_same = np.full(total, -1, np.int64), np.full(total, -1, np.int32)
    for span in corpus.spans():
        chosen = span.start + np.flatnonzero(corpus.kind[span] > EVENT_KINDS.index("impression"))
        after, nth = same_item_links(corpus.user[chosen], corpus.item[chosen])
        next_same[chosen], nth_same[chosen] = np.append(chosen, total)[after], nth
    return next_same, nth_same


def _decayed_counts(
    corpus: Corpus, next_same: NDArray[np.int64], nth_same: NDArray[np.int32], half_life: float
) -> NDArray[np.float32]:
    """(E,) how often the user chose the event's item up to this event; a choice `half_life` days before counts half."""
    count = np.ones(len(corpus.item), np.float32)
    unit = half_life * (DAY if corpus.has_clock else 1)
    for span in corpus.spans():
        following = next_same[span]
        earlier = span.start + np.flatnonzero((following >= 0) & (following < len(corpus.item)))
        rank = nth_same[earlier]
        earlier = earlier[np.argsort(rank, kind="stable")]
        edges = np.searchsorted(np.sort(rank), np.arange(rank.max(initial=-1) + 2))
        for nth in range(len(edges) - 1):  # one step for all items bought n times; the longest run is a few hundred
            event = earlier[edges[nth] : edges[nth + 1]]
            later = next_same[event]
            gap = (corpus.time[later] - corpus.time[event]) / unit
            count[later] += count[event] * np.exp2(-gap).astype(np.float32)
    return count
