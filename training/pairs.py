"""Pairs that belong together, drawn from the training events; nothing is joined, a pair costs a few array look-ups.

Co-clicks are walks of two steps on the graph of queries and items: two queries that led to one item, two items found
with one query (the item graph of GCL-MO, https://arxiv.org/abs/2307.04322). A walk starts at an event of the log, so no
pairs are counted. `KnownPairs` finds those negatives of a batch that the log says belong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from onesearch.corpus import TRAIN, Corpus
from onesearch.corpus.schema import EVENT_KINDS

VISIT: Final = 6
"""How many events in a row count as one visit where the log has no sessions."""

Ints = NDArray[np.int64]


def partners(group: NDArray[np.integer], random: np.random.Generator, drawn: Ints | None = None) -> Ints:
    """For every entry another entry of the same group, uniformly; -1 where it is alone.

    Args:
        group: (n,) which group an entry belongs to.
        drawn: (m,) entries to find partners for, with repeats if wished; all of them if left out.

    >>> partners(np.array([7, 5, 7]), np.random.default_rng(0)).tolist()
    [2, -1, 0]
    """
    drawn = np.arange(len(group)) if drawn is None else drawn
    order = np.argsort(group, kind="stable")
    first, size = _runs(group[order])
    place = np.empty(len(group), np.int64)  # of every entry in the order
    place[order] = np.arange(len(group))
    start, count = first[place[drawn]], size[place[drawn]]
    step = 1 + (random.random(len(drawn)) * (count - 1)).astype(np.int64)
    found = order[start + (place[drawn] - start + step) % count]
    return np.where(count > 1, found, -1)


def _runs(ordered: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Per entry of an ordered list: where the run of its value starts, and how long it is."""
    if not len(ordered):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    run = np.cumsum(starts) - 1
    return np.flatnonzero(starts)[run], np.bincount(run)[run]


@dataclass(frozen=True)
class Pairs:
    """P pairs of queries or items by their index."""

    left: Ints
    right: Ints

    def __len__(self) -> int:
        return len(self.left)

    def part(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Pairs:
        """Some of the pairs."""
        return Pairs(self.left[rows], self.right[rows])


def interactions(corpus: Corpus, split: NDArray[np.int8], part: int = TRAIN) -> Ints:
    """The events of one part of the split in which somebody did something with an item, beyond seeing it."""
    return np.flatnonzero((split == part) & (corpus.kind > EVENT_KINDS.index("impression")))


def searches(corpus: Corpus, events: Ints) -> Ints:
    """Those of the events that have a query."""
    return events[corpus.query[events] >= 0]


def query_item_pairs(corpus: Corpus, events: Ints, size: int, random: np.random.Generator) -> Pairs:
    """At most `size` events with a query: what was searched, and what was taken."""
    drawn = _draw(searches(corpus, events), size, random)
    return Pairs(corpus.query[drawn].astype(np.int64), corpus.item[drawn].astype(np.int64))


def query_query_pairs(corpus: Corpus, events: Ints, text: Ints, size: int, random: np.random.Generator) -> Pairs:
    """At most `size` pairs of different queries that led to items of one text.

    Args:
        text: (N,) equal for items that cannot be told apart by their text.
    """
    asked = searches(corpus, events)
    one, other = _walks(asked, text[corpus.item[asked]], size, random)
    query = corpus.query.astype(np.int64)
    return Pairs(query[one], query[other]).part(query[one] != query[other])


def co_clicked_items(corpus: Corpus, events: Ints, text: Ints, size: int, random: np.random.Generator) -> Pairs:
    """At most `size` pairs of items of different text that were taken after one and the same query."""
    asked = searches(corpus, events)
    return _different_items(corpus, text, *_walks(asked, corpus.query[asked], size, random))


def together(corpus: Corpus, events: Ints, text: Ints, size: int, random: np.random.Generator) -> Pairs:
    """At most `size` pairs of items of different text that were taken in one visit: a session, or where the log has
    none, `VISIT` events of one user in a row."""
    place = np.arange(len(corpus.user)) - corpus.offsets[corpus.user]
    visit = np.where(
        corpus.session > 0, corpus.history_end, len(place) + corpus.offsets[corpus.user] + place // VISIT * VISIT
    )
    return _different_items(corpus, text, *_walks(events, visit[events], size, random))


def _walks(events: Ints, group: NDArray[np.integer], size: int, random: np.random.Generator) -> tuple[Ints, Ints]:
    drawn = _draw(np.arange(len(events)), size, random)
    other = partners(group, random, drawn)
    return events[drawn[other >= 0]], events[other[other >= 0]]


def _different_items(corpus: Corpus, text: Ints, one: Ints, other: Ints) -> Pairs:
    item = corpus.item.astype(np.int64)
    return Pairs(item[one], item[other]).part(text[item[one]] != text[item[other]])


def _draw(entries: Ints, size: int, random: np.random.Generator) -> Ints:
    """At most `size` of the entries without repeats, in a random order."""
    return random.permutation(entries)[:size]


@dataclass(frozen=True)
class Preferences:
    """P times a query, an item that somebody took further and one not so far, in the same visit.

    Attributes:
        steps: (P,) how much further: shown, clicked, put in the cart, bought.
    """

    query: Ints
    better: Ints
    worse: Ints
    steps: Ints

    def __len__(self) -> int:
        return len(self.query)


def preferences(corpus: Corpus, split: NDArray[np.int8], size: int, random: np.random.Generator) -> Preferences:
    """At most `size` comparisons under one query of one visit; none where the log has but one kind of event."""
    asked = searches(corpus, np.flatnonzero(split == TRAIN))
    # An item counts with the most that was done with it: clicked and bought in one visit is bought.
    most = (
        pl.DataFrame({name: getattr(corpus, name)[asked] for name in ("history_end", "query", "item", "kind")})
        .group_by("history_end", "query", "item")
        .agg(pl.col("kind").max())
        .sort("history_end", "query", "kind", "item")
    )
    visit, query, item, kind = (
        most[name].to_numpy().astype(np.int64) for name in ("history_end", "query", "item", "kind")
    )
    first, _ = _runs(visit * (len(corpus.queries) + 1) + query)
    same_kind = (visit * (len(corpus.queries) + 1) + query) * len(EVENT_KINDS) + kind
    lower = _runs(same_kind)[0] - first  # how many of the visit's items were not taken as far
    better = _draw(np.flatnonzero(lower > 0), size, random)
    worse = first[better] + (random.random(len(better)) * lower[better]).astype(np.int64)
    return Preferences(query[better], item[better], item[worse], kind[better] - kind[worse])


class KnownPairs:
    """Which queries led to which item texts, Q queries and T texts; to leave out false negatives.

    Args:
        text: (N,) the text of every item, numbered from 0.
    """

    def __init__(self, corpus: Corpus, events: Ints, text: Ints) -> None:
        asked = searches(corpus, events)
        shape = (len(corpus.queries), int(text.max(initial=-1)) + 1)
        rows, columns = corpus.query[asked], text[corpus.item[asked]]
        self._led = sparse.csr_array((np.ones(len(asked), np.float32), (rows, columns)), shape=shape)
        self._found_with = self._led.T.tocsr()

    def query_text(self, query: Ints, text: Ints) -> NDArray[np.bool_]:
        """(B, M) whether query b led to text m."""
        return np.asarray(self._led[query][:, text].toarray() > 0)

    def contains(self, query: Ints, text: Ints) -> NDArray[np.bool_]:
        """(P,) whether query p led to text p."""
        return np.asarray(self._led[query, text] > 0).ravel()

    def query_query(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """(B, M) whether queries b and m are the same, or led to one text."""
        return self._share(self._led, left, right)

    def text_text(self, left: Ints, right: Ints) -> NDArray[np.bool_]:
        """(B, M) whether texts b and m are the same, or were found with one query."""
        return self._share(self._found_with, left, right)

    @staticmethod
    def _share(held: sparse.csr_array, left: Ints, right: Ints) -> NDArray[np.bool_]:
        shared = (held[left] @ held[right].T).toarray() > 0
        return np.asarray(shared | (left[:, None] == right))
