"""What the ranking stage of the cascade knows about a request and a candidate item.

Six families: how the texts fit, what this user bought before and when, what alike users buy, what everybody buys at
the moment, prices, and what is on offer where the request is made.
Everything is computed for blocks of requests at once; nothing at or after a request's session enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from eval.baselines.bm25 import BM25
from eval.baselines.dense import Dense
from eval.baselines.history import OwnHistory
from eval.baselines.pairs import find_pairs, numbered
from eval.baselines.popularity import FreshPopularity, day
from eval.baselines.purchases import OwnItems, Purchases
from eval.baselines.text import Terms, Texts, trigrams, words
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.offers import Offers, offer_kinds
from onesearch.embed.text import unit_rows

Column = NDArray[np.floating[Any]]
_SHORT, _LONG, _SEASON = 14.0, 182.0, 56.0  # half-lives in days
_CLOSE = 4
"""Exponent of the share of the best purchase's BM25 relevance, where purchases are weighed by how they fit."""


class Field:
    """One field of the items (title, brand, a category): how many of its words a query names."""

    def __init__(self, values: Sequence[str]) -> None:
        distinct, self.of_item = np.unique(np.asarray(values, dtype=object), return_inverse=True)
        self.size = len(distinct)
        self._words = [sorted(set(words(value))) for value in distinct]
        self._terms = Terms(self._words)
        self._matrix = self._terms.rows(self._words).T.tocsr()
        self._length = np.maximum([len(value) for value in self._words], 1).astype(np.float32)
        letters = [sorted(set(trigrams(value))) for value in distinct]
        self._letters = Terms(letters)
        self._letter_matrix = self._letters.rows(letters).T.tocsr()
        self._letter_length = np.maximum([len(value) for value in letters], 1).astype(np.float32)

    def matches(self, queries: Sequence[str]) -> tuple[Column, Column, Column]:
        """(q, F) share of the query's words in each distinct value, share of its words, share of its trigrams."""
        asked = [sorted(set(words(query))) for query in queries]
        common = (self._terms.rows(asked) @ self._matrix).toarray()
        asked_length = np.maximum([len(query) for query in asked], 1).astype(np.float32)
        letters = (self._letters.rows([trigrams(query) for query in queries]) @ self._letter_matrix).toarray()
        return common / asked_length[:, None], common / self._length, letters / self._letter_length


class Group:
    """A way to put items together (category, brand within a category, equal text): what a user buys of each group."""

    def __init__(self, of_item: NDArray[np.int64]) -> None:
        self.of_item = of_item
        count = int(of_item.max()) + 1
        shape = (len(of_item), count)
        self._matrix = sparse.csr_matrix((np.ones(len(of_item), np.float32), (np.arange(len(of_item)), of_item)), shape)

    def sums(self, per_item: sparse.csr_matrix) -> Column:
        """(q, N) values of items to the (q, G) sums of their groups."""
        return np.asarray((per_item @ self._matrix).todense())


class Features:
    """Turns (Q, C) candidates into rows of features, by name."""

    def __init__(
        self,
        corpus: Corpus,
        texts: Texts,
        bm25: BM25,
        dense: Dense,
        history: OwnHistory,
        fresh: FreshPopularity,
        purchases: Purchases,
        taste: NDArray[np.float32],
    ) -> None:
        """
        Args:
            taste: (N, d) unit vectors of the items, of `onesearch.context.taste`.
        """
        self._corpus, self._texts, self._bm25, self._dense, self._taste = corpus, texts, bm25, dense, taste
        self._history, self._fresh, self._purchases = history, fresh, purchases
        self._day = day(corpus)
        self._offers = Offers.of(corpus, offer_kinds(corpus))
        categories = corpus.items["categories"]
        leaf, parent = (categories.list.get(level, null_on_oob=True).fill_null("").to_list() for level in (-1, -2))
        brand = corpus.items["brand"].fill_null("").to_list()
        self._fields = {
            "title": Field(corpus.items["title"].to_list()),
            "leaf": Field(leaf),
            "parent": Field(parent),
            "brand": Field(brand),
        }
        branded = pl.DataFrame({"leaf": leaf, "brand": brand}).select(pl.struct("leaf", "brand").rank("dense"))
        self._groups = {
            "text": Group(texts.of_item),
            "leaf": Group(self._fields["leaf"].of_item),
            "parent": Group(self._fields["parent"].of_item),
            "brand": Group(self._fields["brand"].of_item),
            "leaf_brand": Group(branded.to_series().to_numpy().astype(np.int64) - 1),
        }
        price = corpus.items["price"].to_numpy().astype(np.float32)
        usual = np.nanmedian(price) if np.isfinite(price).any() else 1
        self._price = np.log(np.maximum(np.where(np.isfinite(price), price, usual), 0.01)).astype(np.float32)

    def with_taste(self, taste: NDArray[np.float32]) -> Features:
        """The same with other vectors of the items."""
        other = copy(self)
        other._taste = taste
        return other

    def __call__(
        self, requests: Requests, items: NDArray[np.int32], recall_scores: NDArray[np.float32]
    ) -> dict[str, Column]:
        """(Q, C) candidates (none missing) to features of shape (Q, C)."""
        found: dict[str, Column] = {"recall": recall_scores}
        found |= self._text(requests, items)
        found |= self._popularity(requests, items)
        own = self._purchases.before(requests)
        found |= self._own(requests, items, own)
        found |= self._alike(requests, items, own)
        found |= self.offered(self._offers, requests, items)
        row = np.repeat(np.arange(len(requests)), items.shape[1])
        found["history_score"] = self._history.score_pairs(requests, row, items.ravel(), own).reshape(items.shape)
        for name in ("history_score", "popularity_short", "own_faded", "bm25"):
            found[f"{name}_below_best"] = found[name].max(axis=1, keepdims=True) - found[name]
        return found

    @staticmethod
    def offered(offers: Offers, requests: Requests, items: NDArray[np.integer]) -> dict[str, Column]:
        """Which candidates (Q, C) are on offer where and when they are asked for, by kind."""
        found = offers.of_items(offers.rows(requests), items)
        return {f"offered_{kind}": found[..., number] for number, kind in enumerate(offers.kinds)}

    def _text(self, requests: Requests, items: NDArray[np.int32]) -> dict[str, Column]:
        queries, query = numbered(requests.query)
        ask, text = query[:, None], self._texts.of_item[items]
        found = {
            "bm25": self._bm25.relevance(queries)[ask, text],
            "cosine": self._dense.cosines(queries)[ask, text],
            "query_words": np.array([len(words(q)) for q in queries], np.float32)[ask] + np.zeros_like(items),
        }
        for name, field in self._fields.items():
            of_query, of_field, letters = field.matches(queries)
            value = field.of_item[items]
            found[f"query_in_{name}"] = of_query[ask, value]
            found[f"{name}_in_query"] = of_field[ask, value]
            found[f"{name}_letters"] = letters[ask, value]
        return found

    def _popularity(self, requests: Requests, items: NDArray[np.int32]) -> dict[str, Column]:
        found = {}
        for name, half_life in (("short", _SHORT), ("season", _SEASON), ("long", _LONG)):
            snapshots, logs = self._fresh.table(half_life)
            found[f"popularity_{name}"] = logs[snapshots.at(requests.time)[:, None], items]
        found["trend"] = found["popularity_short"] - found["popularity_long"]
        return found

    def _own(self, requests: Requests, items: NDArray[np.int32], own: OwnItems) -> dict[str, Column]:
        bought = self._purchases
        now = requests.time[own.row]
        count = bought.count[own.event].astype(np.float32)
        faded = bought.faded_at(_SEASON * self._day, own.event, now)
        briefly = bought.faded_at(_SHORT * self._day, own.event, now)
        since = ((now - bought.last[own.event]) / self._day).astype(np.float32)
        span = ((bought.last[own.event] - bought.first[own.event]) / self._day).astype(np.float32)
        between = np.where(count > 1, span / np.maximum(count - 1, 1), np.float32(np.nan)).astype(np.float32)

        place = find_pairs(
            np.repeat(np.arange(len(requests)), items.shape[1]), items.ravel(), own.row, own.item, len(self._price)
        ).reshape(items.shape)

        def spread(values: Column, missing: float) -> Column:
            return np.where(place >= 0, np.append(values, np.float32(0))[place], np.float32(missing))

        found = {
            "own_count": spread(count, 0),
            "own_faded": spread(np.log1p(faded), 0),
            "own_briefly": spread(np.log1p(briefly), 0),
            "days_since": spread(since, np.nan),
            "days_between": spread(between, np.nan),
            "due": spread(since / np.maximum(between, 0.5), np.nan),
        }
        found |= self._own_groups(requests, items, own, faded, found["own_faded"])
        found |= self._own_prices(requests, items, own, count)
        return found

    def _alike(self, requests: Requests, items: NDArray[np.int32], own: OwnItems) -> dict[str, Column]:
        """Cosines of the candidate and what the user bought, in all and of what fits the query."""
        queries, query = numbered(requests.query)
        fit = self._bm25.relevance(queries)[query[own.row], self._texts.of_item[own.item]].astype(np.float32)
        best = np.zeros(len(requests), np.float32)
        np.maximum.at(best, own.row, fit)
        close = (fit / np.maximum(best[own.row], 1e-6)) ** _CLOSE
        found: dict[str, Column] = {}
        for name, weight in (("taste", np.ones_like(close)), ("taste_of_fitting", close)):
            bought = sparse.csr_matrix((weight, (own.row, own.item)), (len(requests), len(self._taste)))
            found[name] = np.einsum("qd,qcd->qc", unit_rows(bought @ self._taste), self._taste[items])
        return found

    def _own_groups(
        self, requests: Requests, items: NDArray[np.int32], own: OwnItems, faded: Column, of_item: Column
    ) -> dict[str, Column]:
        """How much of the user's (fading) purchases are of the candidate's group."""
        rows = np.arange(len(requests))[:, None]
        per_item = sparse.csr_matrix((faded, (own.row, own.item)), (len(requests), len(self._price)))
        total = np.asarray(per_item.sum(axis=1)).astype(np.float32)
        found: dict[str, Column] = {"own_total": np.log1p(total) + np.zeros_like(of_item)}
        sums: dict[str, Column] = {
            name: group.sums(per_item)[rows, group.of_item[items]] for name, group in self._groups.items()
        }
        for name, of_group in sums.items():
            found[f"own_{name}"] = np.log1p(of_group)
        found["brand_share"] = sums["brand"] / np.maximum(total, 1e-6)
        found["brand_share_in_leaf"] = sums["leaf_brand"] / np.maximum(sums["leaf"], 1e-6)
        found["share_in_leaf"] = np.expm1(of_item) / np.maximum(sums["leaf"], 1e-6)
        found["share_in_parent"] = np.expm1(of_item) / np.maximum(sums["parent"], 1e-6)
        return found

    def _own_prices(
        self, requests: Requests, items: NDArray[np.int32], own: OwnItems, count: Column
    ) -> dict[str, Column]:
        """The candidate's price, and how it compares with what the user pays, in all and in the same category."""
        rows = np.arange(len(requests))[:, None]
        price = self._price[items]
        shape = (len(requests), len(self._price))
        bought = sparse.csr_matrix((count, (own.row, own.item)), shape)
        paid = sparse.csr_matrix((count * self._price[own.item], (own.row, own.item)), shape)
        all_bought = np.asarray(bought.sum(axis=1)).astype(np.float32)
        all_paid = np.asarray(paid.sum(axis=1)).astype(np.float32)
        mean = np.divide(all_paid, all_bought, out=np.full_like(all_paid, np.nan), where=all_bought > 0)
        group = self._groups["leaf"]
        in_leaf = group.sums(bought)[rows, group.of_item[items]]
        leaf_paid = group.sums(paid)[rows, group.of_item[items]]
        leaf_mean = np.divide(leaf_paid, in_leaf, out=np.full_like(in_leaf, np.nan), where=in_leaf > 0)
        return {"price": price, "price_to_mean": price - mean, "price_to_leaf_mean": price - leaf_mean}
