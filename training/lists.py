"""Lists of candidates that a reward model learns from: what was shown, or what could have been.

A log with impressions says what was shown for each search: those rows are the data. A log of purchases does not. There
a list is made for each purchase: the item, others of the same visit and category, and negatives of four kinds, in fixed
numbers: past purchases of the user that fit the query, items bought after the same query, items of the same category,
and items at random; the last three each as often as they are bought. So the *lists are sampled*, and a probability that
is learnt from them holds for such lists: about one purchase in a list. Training, validation and test lists are drawn
by the same rule, which is what makes it a calibrated one there; `recalibrated` takes it to lists with another share.

UniScale (https://arxiv.org/abs/2603.24226) likewise adds sampled unexposed candidates to the shown ones; `random` does
so where the log has impressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import target_kind
from onesearch.noise import fine_uniform
from onesearch.reward.levels import Interactions

Ints = NDArray[np.int64]
DRAWN: Final = ("visit", "own", "query", "category", "random", "beam")
"""Kinds of sampled candidates, in the order of the columns behind the item itself."""


@dataclass(frozen=True)
class Groups:
    """Events in groups: group g is `events[offsets[g]:offsets[g + 1]]`."""

    events: Ints
    offsets: Ints

    @classmethod
    def of(cls, group: Ints, events: Ints, count: int) -> Groups:
        """Events (n,) by their groups (n,), of which there are `count`; -1 for none."""
        events, group = events[group >= 0], group[group >= 0]
        order = np.argsort(group, kind="stable")
        return cls(events[order], np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))]))

    def draw(self, group: Ints, luck: NDArray[np.float64]) -> Ints:
        """(Q, n) an event of each group (Q,) for each number in [0, 1) of `luck` (Q, n); -1 from an empty group."""
        if not len(self.events):
            return np.full(luck.shape, -1, np.int64)
        start, size = self.offsets[group], self.offsets[group + 1] - self.offsets[group]
        place = start[:, None] + np.floor(luck * size[:, None]).astype(np.int64)
        drawn = self.events[np.minimum(place, len(self.events) - 1)]
        return np.where((group >= 0)[:, None] & (size > 0)[:, None], drawn, -1)


class CandidateLists:
    """Draws the lists of requests; the same request gets the same list, whatever batch or process it is in."""

    def __init__(
        self,
        corpus: Corpus,
        training: NDArray[np.bool_],
        interactions: Interactions,
        numbers: Mapping[str, int],
        shown: int,
        seed: int,
        beams: tuple[Ints, Ints] | None = None,
    ) -> None:
        """
        Args:
            training: (E,) whether negatives may come from an event.
            numbers: how many of each kind in `DRAWN`.
            shown: how many shown items, in a log with impressions.
            beams: events (n,), ascending, and what a generator answers to their requests (n, beam).
        """
        self.corpus, self.numbers, self.seed, self._beams = corpus, dict(numbers), seed, beams
        self.interactions = interactions
        self.shown = shown if has_impressions(corpus) else 0
        chosen = np.flatnonzero(training & (corpus.kind == target_kind(corpus))).astype(np.int64)
        self._all = chosen
        self._of_query = Groups.of(corpus.query[chosen].astype(np.int64), chosen, len(corpus.queries))
        category = interactions.category
        self._of_category = Groups.of(category[corpus.item[chosen]], chosen, int(category.max(initial=-1)) + 1)
        asked = np.flatnonzero(corpus.kind == target_kind(corpus)).astype(np.int64)
        self._of_visit = Groups.of(corpus.history_end[asked], asked, len(corpus.item))
        self._searches = Searches.of(corpus) if self.shown else None

    @property
    def width(self) -> int:
        """K, the columns of a list."""
        return self.shown + sum(self.numbers.values()) + (self._searches is None)

    def __call__(self, requests: Requests, own: NDArray[np.integer]) -> Ints:
        """(Q, K) items, each once, -1 in empty places; the first is the item that was bought, or else shown items.

        Args:
            own: (Q, H) past purchases of each request's user, the most relevant first, -1 in empty places.
        """
        corpus, numbers, target = self.corpus, self.numbers, requests.target.astype(np.int64)
        luck = draws(requests.event, sum(numbers[name] for name in DRAWN[:-1]) + own.shape[1], self.seed)
        parts = [target[:, None]] if self._searches is None else [self._searches.items(requests.event, self.shown)]
        category = self.interactions.category[target]
        place = 0
        for name in DRAWN[:-1]:
            some = luck[:, place : place + numbers[name]]
            place += numbers[name]
            if name == "own":
                parts.append(_some_of(own, luck[:, -own.shape[1] :], numbers[name]))
                continue
            drawn = self._all[np.floor(some * len(self._all)).astype(np.int64)]
            if name in ("query", "category"):
                alike = self._of_category.draw(category, some)
                drawn = np.where(alike >= 0, alike, drawn)
            if name == "query":
                same = self._of_query.draw(corpus.query[requests.event].astype(np.int64), some)
                other = (same >= 0) & (corpus.item[same] != target[:, None])
                drawn = np.where(other, same, drawn)
            if name == "visit":
                drawn = self._of_visit.draw(requests.history_end, some)
                alike = (drawn >= 0) & (self.interactions.category[corpus.item[drawn]] == category[:, None])
                drawn = np.where(alike & (category >= 0)[:, None], drawn, -1)
            parts.append(np.where(drawn >= 0, corpus.item[drawn], -1).astype(np.int64))
        parts.append(self._beam(requests.event))
        return each_once(np.concatenate(parts, 1))

    def _beam(self, event: Ints) -> Ints:
        """(Q, beam) what a generator answers; a request that it was not asked has none."""
        wide = self.numbers["beam"]
        if self._beams is None or not wide or not len(self._beams[0]):
            return np.full((len(event), wide), -1, np.int64)
        events, answers = self._beams
        place = np.minimum(np.searchsorted(events, event), len(events) - 1)
        return np.where((events[place] == event)[:, None], answers[place, :wide], -1)


@dataclass(frozen=True)
class Searches:
    """What was shown for each search of a log with impressions: the events of a visit with one query."""

    key: Ints
    event: Ints
    corpus: Corpus

    @classmethod
    def of(cls, corpus: Corpus) -> Searches:
        """The events with a query, by search, the strongest first; each item of a search once."""
        asked = np.flatnonzero(corpus.query >= 0).astype(np.int64)
        key, item, kind = corpus.searches(asked), corpus.item[asked], corpus.kind[asked]
        order = np.lexsort((-kind, item, key))
        key, item, kind, asked = key[order], item[order], kind[order], asked[order]
        first = np.ones(len(key), bool)
        first[1:] = (key[1:] != key[:-1]) | (item[1:] != item[:-1])
        key, kind, asked = key[first], kind[first], asked[first]
        order = np.lexsort((asked, -kind, key))
        return cls(key[order], asked[order], corpus)

    def first(self) -> Ints:
        """One event of each search, the strongest: it stands for the search."""
        first = np.ones(len(self.key), bool)
        first[1:] = self.key[1:] != self.key[:-1]
        return np.sort(self.event[first])

    def items(self, event: Ints, most: int) -> Ints:
        """(Q, most) shown items of the searches of these events, the strongest first; -1 behind them."""
        key = self.corpus.searches(event)
        place = np.searchsorted(self.key, key)[:, None] + np.arange(most)
        inside = place < len(self.key)
        place = np.minimum(place, len(self.key) - 1)
        return np.where(inside & (self.key[place] == key[:, None]), self.corpus.item[self.event[place]], -1)


def learnt_events(corpus: Corpus) -> Ints:
    """The events whose requests have a list: of a log with impressions one a search, else every purchase."""
    if has_impressions(corpus):
        return Searches.of(corpus).first()
    return np.flatnonzero(corpus.kind == target_kind(corpus)).astype(np.int64)


def has_impressions(corpus: Corpus) -> bool:
    """Whether the log says what was shown for searches."""
    return bool(((corpus.kind == EVENT_KINDS.index("impression")) & (corpus.query >= 0)).any())


def recalibrated(probability: NDArray[np.floating], learnt: float, now: float) -> NDArray[np.float64]:
    """Probabilities for lists in which the share of positives is `now` instead of the `learnt` one: the odds are
    multiplied by those of the shares (King and Zeng, "Logistic regression in rare events data", 2001).

    >>> recalibrated(np.array([0.5]), 0.5, 0.1).round(3).tolist()
    [0.1]
    """
    odds = probability / (1 - probability) * (now / (1 - now)) / (learnt / (1 - learnt))
    return np.asarray(odds / (1 + odds), np.float64)


def draws(events: Ints, count: int, seed: int) -> NDArray[np.float64]:
    """(Q, count) numbers in [0, 1) that depend on event, column and seed alone."""
    return fine_uniform(seed, torch.from_numpy(events)[:, None], torch.arange(count)).numpy()


def each_once(items: Ints) -> Ints:
    """(Q, K) the same with -1 wherever an item is repeated in its row; the first stays."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, 1)
    repeated = np.zeros(items.shape, bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    found = items.copy()
    np.put_along_axis(found, order, np.where(repeated, -1, ordered), 1)
    return found


def _some_of(own: NDArray[np.integer], luck: NDArray[np.float64], count: int) -> Ints:
    """(Q, count) of the 3 count first of `own` (Q, H), in random order; -1 where there are fewer."""
    near = own[:, : 3 * count].astype(np.int64)
    order = np.argsort(np.where(near >= 0, luck[:, : near.shape[1]], 2), axis=1)[:, :count]
    found = np.take_along_axis(near, order, 1)
    return np.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=-1)
