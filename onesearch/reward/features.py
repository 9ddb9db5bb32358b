"""What the reward model reads: a request as the generator reads it, and what is known of it and a candidate together.

Towers alone see how much alike a query, a user and an item are; whether *this* user bought *this* item, how much of
the category, and whether it sells at the moment, they cannot see. Those are the cross features: numbers that are known
when the request is made, and nothing at or after its session enters. A user's request, its history slots (the most
relevant to the query: the search-based interest model, SIM, that PARS names) and the views come from
`onesearch.context`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from onesearch.context.batch import ContextBuilder, EncodedQueries
from onesearch.context.history import FEATURES, HABIT, HistorySlots
from onesearch.corpus import Corpus, Requests
from onesearch.reward.levels import leaf_categories
from onesearch.reward.past import Past

TEXT: Final = ("lexical", "semantic", "coverage")
"""What the texts of query and item say: all that the relevance head is told beside its towers."""

GROUPS: Final = ("title", "leaf", "parent", "brand", "code")
"""Ways to put items together, of whose purchases the history slots tell."""

CROSS: Final = (
    *TEXT,
    "bought",  # before, by this user
    *HABIT,
    *(f"{group}_lastingly" for group in GROUPS),  # purchases of the candidate's group among the slots, fading
    *(f"{group}_share" for group in GROUPS),  # of the fading purchases among the slots
    *(f"{group}_own" for group in GROUPS),  # share of the candidate itself in its group
    "popular_lately",
    "popular_lastingly",
    "trend",
    "taste",  # cosine with all that the user bought
    "taste_fitting",  # and with what of it fits the query
    "price",
    "price_to_group",  # against what the user pays in the candidate's category
    "log_past",
)
"""The cross features, in their order; whether an item is on offer follows, for each kind of offers that there is."""


@dataclass(frozen=True)
class RewardFeatures:
    """Turns requests and candidates into tensors.

    Attributes:
        groups: (N, G) int64 which group of each kind an item is in, -1 for none; `GROUPS`.
        price: (N,) float32 log price.
    """

    builder: ContextBuilder
    past: Past
    groups: NDArray[np.int64]
    price: NDArray[np.float32]

    @classmethod
    def of(cls, builder: ContextBuilder) -> RewardFeatures:
        """What is known of the items of the builder's corpus."""
        corpus = builder.corpus
        return cls(builder, Past.of(corpus), item_groups(corpus, builder.codes), log_prices(corpus))

    def knowing(self, events: NDArray[np.int64]) -> RewardFeatures:
        """The same, with the items' taste vectors made of these events."""
        return replace(self, builder=self.builder.knowing(events))

    @property
    def item_content(self) -> NDArray[np.float32]:
        """(N, V) what is known of an item by itself: its text, its taste vector, its price."""
        return np.column_stack([self.builder.item_vectors, self.price]).astype(np.float32)

    def inputs(
        self,
        requests: Requests,
        items: NDArray[np.integer],
        queries: EncodedQueries | None = None,
        read: tuple[dict[str, Any], HistorySlots] | None = None,
    ) -> dict[str, Any]:
        """The arguments of `RewardNetwork.forward` but the labels, for B requests and items (B, K), -1 in empty places.

        Args:
            queries: of the requests, where they are encoded already.
            read: what `ContextBuilder.inputs` gave, where it is known already.
        """
        queries = self.builder.encode(requests.query) if queries is None else queries
        given, slots = self.builder.inputs(requests, queries) if read is None else read
        used = given["slot_codes"].shape[1]
        arguments = {name: given[name] for name in ("query_ids", "query_mask", "query_vector", "slot_features")}
        arguments["slot_items"] = torch.from_numpy(slots.item[:, :used].astype(np.int64))
        arguments["items"] = torch.from_numpy(items.astype(np.int64))
        arguments["cross"] = torch.from_numpy(self.cross(requests, items, queries, slots))
        if "views" in given:
            arguments["views"] = given["views"]
        return arguments

    def cross(
        self, requests: Requests, items: NDArray[np.integer], queries: EncodedQueries, slots: HistorySlots
    ) -> NDArray[np.float32]:
        """(Q, K, F) `CROSS` of items (Q, K), and which kinds of offers each is in; 0 in empty places."""
        there = items >= 0
        candidate = np.maximum(items, 0)
        found = np.zeros((*items.shape, len(CROSS)), np.float32)
        put = {name: found[..., place] for place, name in enumerate(CROSS)}
        self._text(put, queries, candidate)
        last = self.past.last(requests, items)
        row, column = np.nonzero(last >= 0)
        event, selector = last[row, column], self.builder.selector
        own = selector.habit(event, selector.days(requests.time[row], event))
        place = CROSS.index(HABIT[0])
        found[row, column, place : place + len(HABIT)] = own
        put["bought"][row, column] = 1
        self._groups(put, candidate, slots, np.expm1(put["lastingly"]))
        snapshot = self.builder.popularities[0].at(requests.time)[:, None]
        for name, one in zip(("popular_lately", "popular_lastingly"), self.builder.popularities, strict=True):
            put[name][:] = np.log1p(one.counts[snapshot, candidate]) / 4
        put["trend"][:] = put["popular_lately"] - put["popular_lastingly"]
        taste = selector.taste[candidate]
        put["taste"][:], put["taste_fitting"][:] = np.einsum("qtd,qkd->tqk", slots.taste, taste, optimize=True)
        put["log_past"][:] = np.log1p(requests.history_end - requests.history_start)[:, None] / 8
        found[~there] = 0
        offers = self.builder.offers
        return np.concatenate([found, offers.of_items(offers.rows(requests), items)], -1)

    @property
    def crossed(self) -> int:
        """How many cross features there are."""
        return len(CROSS) + len(self.builder.offers.kinds)

    def _text(self, put: dict[str, NDArray[np.float32]], queries: EncodedQueries, items: NDArray[np.integer]) -> None:
        vectors, half = self.builder.selector.texts.vectors[items], len(self.builder.space.lexical)
        asked = queries.texts.vectors[:, :, None]
        put["lexical"][:] = 2 * (vectors[..., :half] @ asked[:, :half])[..., 0]
        put["semantic"][:] = 2 * (vectors[..., half:] @ asked[:, half:])[..., 0]
        row = np.repeat(np.arange(len(items)), items.shape[1])
        covered = queries.texts.covered(row, self.builder.selector.texts, items.ravel())
        put["coverage"][:] = covered.reshape(items.shape)

    def _groups(
        self,
        put: dict[str, NDArray[np.float32]],
        items: NDArray[np.integer],
        slots: HistorySlots,
        own: NDArray[np.float32],
    ) -> None:
        """What the slots say of the candidates' groups, and `own` (Q, K), fading purchases of a candidate itself."""
        used = max(int((slots.item >= 0).sum(1).max(initial=0)), 1)
        slot, filled = slots.item[:, :used], slots.item[:, :used] >= 0
        weight = np.expm1(slots.features[:, :used, FEATURES.index("lastingly")]) * filled
        total = np.maximum(weight.sum(1), 1e-6)[:, None]
        for place, name in enumerate(GROUPS):
            group = self.groups[:, place]
            mine, theirs = group[items], group[slot]
            alike = (mine[:, :, None] == theirs[:, None]) & (mine >= 0)[:, :, None]
            summed = np.einsum("qkh,qh->qk", alike.astype(np.float32), weight.astype(np.float32), optimize=True)
            put[f"{name}_lastingly"][:] = np.log1p(summed)
            put[f"{name}_share"][:] = summed / total
            put[f"{name}_own"][:] = own / np.maximum(np.maximum(summed, own), 1e-6)
            if name == "leaf":
                paid = np.einsum("qkh,qh->qk", alike.astype(np.float32), self.price[slot] * weight, optimize=True)
                usual = np.where(summed > 1e-6, paid / np.maximum(summed, 1e-6), self.price[items])
                put["price"][:], put["price_to_group"][:] = self.price[items], self.price[items] - usual


def item_groups(corpus: Corpus, codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N, G) the groups of `GROUPS` that the items are in; -1 where an item has no such field."""
    columns = corpus.items.select(
        "title",
        parent=pl.col("categories").list.get(-2, null_on_oob=True),
        brand="brand",
    )
    numbered = {
        name: columns[name].rank("dense").cast(pl.Int64).fill_null(-1).to_numpy()
        for name in ("title", "parent", "brand")
    }
    numbered |= {"leaf": leaf_categories(corpus), "code": codes[:, 0].astype(np.int64)}
    return np.column_stack([numbered[name] for name in GROUPS])


def log_prices(corpus: Corpus) -> NDArray[np.float32]:
    """(N,) log prices, in units of the spread about the median; 0 where a price is not known."""
    price = corpus.items["price"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    known = np.isfinite(price) & (price > 0)
    if not known.any():
        return np.zeros(len(price), np.float32)
    logs = np.log(np.where(known, price, 1.0))
    spread = max(float(logs[known].std()), 1e-3)
    return np.where(known, (logs - np.median(logs[known])) / spread, 0).astype(np.float32)
