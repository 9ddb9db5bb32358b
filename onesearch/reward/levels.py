"""How strongly a user took to an item in one search: the interaction levels of PARS, and rewards made of them.

PARS (OneSearch, https://arxiv.org/abs/2509.03236) has six levels: 2.0 bought from the search, 1.5 of the same category
and bought elsewhere, 1.0 clicked, .5 exposed, .2 of the same category and not exposed, 0 at random; and it combines
them with click and conversion rates that are calibrated by log counts. Our completion, where its exact form is not
known:

- *elsewhere* is the same visit, by another search or by none; *the same category* is that of the item that the search
  led to, the leaf of its category path. Several levels may be true of an item: the highest counts.
- A rate is log(1 + clicks) / log(1 + impressions), and log(1 + purchases) / log(1 + clicks); an item without any gets
  the ratio of the sums of all items. As whoever buys has clicked, and whoever clicks was shown something, an event
  counts for all weaker kinds that the log does not have. So in a log of purchases alone every rate is 1.
- r = 2 level CTR CVR / (CTR + CVR): the level times the harmonic mean of both rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS

BOUGHT, ELSEWHERE, CLICKED, EXPOSED, UNEXPOSED, RANDOM = LEVELS = (2.0, 1.5, 1.0, 0.5, 0.2, 0.0)
"""The levels of PARS, by the names of what happened."""

_IMPRESSION, _CLICK, _, _PURCHASE = range(len(EVENT_KINDS))
_OF_KIND: Final = np.array([EXPOSED, CLICKED, CLICKED, BOUGHT], np.float32)
"""Levels of events of the search itself; an item in the cart was clicked, and not bought."""


def leaf_categories(corpus: Corpus) -> NDArray[np.int64]:
    """(N,) number of each item's leaf category; -1 where it has none."""
    path = corpus.items["categories"].list.join("\x1f")
    number = path.rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
    return np.where((path.fill_null("") == "").to_numpy(), -1, number)


def category_prefixes(corpus: Corpus) -> NDArray[np.int64]:
    """(N, P) numbers of the prefixes of each item's category path, root first; -1 behind its end."""
    paths = corpus.items["categories"]
    deepest = int(paths.list.len().max() or 0)  # type: ignore[arg-type]
    columns = []
    for depth in range(1, deepest + 1):
        prefix = pl.DataFrame({"path": paths.list.head(depth).list.join("\x1f"), "there": paths.list.len() >= depth})
        number = prefix.select(pl.when("there").then("path")).to_series().rank("dense").cast(pl.Int64)
        columns.append(number.fill_null(-1).to_numpy())
    return np.column_stack(columns) if columns else np.full((len(paths), 1), -1, np.int64)


def shared_category(paths: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """(...) which share of the category path `wanted` (..., P), from the root on, `paths` (..., P) has too, both by the
    numbers of their prefixes; 0 where nothing is wanted."""
    there = wanted >= 0
    return ((paths == wanted) & there).sum(-1) / np.maximum(there.sum(-1), 1)


@dataclass(frozen=True)
class Interactions:
    """What the log says about items of a search, to be asked for many pairs at once.

    Attributes:
        category: (N,) of the items, -1 for none.
    """

    category: NDArray[np.int64]
    _corpus: Corpus
    _search: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]
    _visit: NDArray[np.int64]

    @classmethod
    def of(cls, corpus: Corpus, category: NDArray[np.int64] | None = None) -> Interactions:
        """Sort the events of a log once.

        Args:
            category: (N,) of the items, by default their leaf categories.
        """
        pair = _pairs(corpus.history_end, corpus.item, len(corpus.items))
        order = np.lexsort((-corpus.kind, corpus.query, pair))
        pair, query, kind = pair[order], corpus.query[order].astype(np.int64), corpus.kind[order]
        first = np.ones(len(pair), bool)
        first[1:] = (pair[1:] != pair[:-1]) | (query[1:] != query[:-1])
        bought = np.unique(pair[kind == _PURCHASE])
        pair, query, kind = pair[first], query[first], kind[first]
        number, of_pair = np.unique(pair, return_inverse=True)
        search = (number, of_pair * (len(corpus.queries) + 1) + query + 1, kind)
        return cls(leaf_categories(corpus) if category is None else category, corpus, search, bought)

    def levels(self, requests: Requests, items: NDArray[np.integer]) -> NDArray[np.float32]:
        """(Q, K) levels of items (Q, K) of requests of the log; 0 where an item is -1."""
        corpus = self._corpus
        pair = _pairs(requests.history_end[:, None], np.maximum(items, 0), len(corpus.items))
        pairs, searches, kinds = self._search
        known, place = _find(pairs, pair)
        asked = place * (len(corpus.queries) + 1) + corpus.query[requests.event][:, None] + 1
        found, place = _find(searches, asked)
        of_search = np.where(known & found, _OF_KIND[kinds[place]] if len(kinds) else 0, 0)
        wanted = self.category[requests.target][:, None]
        alike = (self.category[items] == wanted) & (wanted >= 0)
        elsewhere = alike & _find(self._visit, pair)[0]
        level = np.maximum(of_search, np.where(elsewhere, ELSEWHERE, np.where(alike, UNEXPOSED, RANDOM)))
        return np.where(items >= 0, level, 0).astype(np.float32)


@dataclass(frozen=True)
class Rates:
    """Click and conversion rates of the items, by log counts: click (N,), conversion (N,) float32, from 0 to 1."""

    click: NDArray[np.float32]
    conversion: NDArray[np.float32]

    @classmethod
    def of(cls, corpus: Corpus, events: NDArray[np.int64]) -> Rates:
        """Rates from some events, those of the training period say."""
        kind, item = corpus.kind[events], corpus.item[events]
        counts = np.zeros((len(EVENT_KINDS), len(corpus.items)))
        np.add.at(counts, (kind, item), 1)
        there: NDArray[np.bool_] = counts.sum(1) > 0
        bought = counts[_PURCHASE]
        clicked = counts[_CLICK] if there[_CLICK] else bought
        shown = counts[_IMPRESSION] if there[_IMPRESSION] else clicked
        return cls(log_count_rate(clicked, shown), log_count_rate(bought, clicked))

    def rewards(self, levels: NDArray[np.float32], items: NDArray[np.integer]) -> NDArray[np.float32]:
        """(Q, K) rewards of items (Q, K) on these levels: the level times the harmonic mean of the item's rates."""
        click, conversion = self.click[items], self.conversion[items]
        both = 2 * levels * click * conversion / np.maximum(click + conversion, 1e-12)
        return np.where(items >= 0, both, 0).astype(np.float32)


def log_count_rate(done: NDArray[np.float64], of: NDArray[np.float64]) -> NDArray[np.float32]:
    """(N,) log(1 + done) / log(1 + of), at most 1; the ratio of the sums where there was nothing to do.

    >>> [f"{rate:.2f}" for rate in log_count_rate(np.array([3.0, 0, 0]), np.array([15.0, 3, 0]))]
    ['0.50', '0.00', '0.33']
    """
    logs, all_logs = np.log1p(done), np.log1p(of)
    usual = min(logs.sum() / all_logs.sum(), 1.0) if all_logs.sum() else 0.0
    rate = np.where(of > 0, logs / np.where(of > 0, all_logs, 1), usual)
    return np.minimum(rate, 1).astype(np.float32)


def _pairs(visit: NDArray[np.integer], item: NDArray[np.integer], items: int) -> NDArray[np.int64]:
    return visit.astype(np.int64) * items + item


def _find(keys: NDArray[np.int64], asked: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each of `asked` is among the sorted `keys`, and a place in them (that of the key where it is)."""
    if not len(keys):
        return np.zeros(asked.shape, bool), np.zeros(asked.shape, np.int64)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return keys[place] == asked, place
