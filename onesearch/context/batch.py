"""From search requests to the generator's input tensors, and from the run folder back to the parts that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onesearch.context.history import FEATURES, HistorySelector, HistorySlots
from onesearch.context.relevance import RelevanceSpace, RelevantTexts
from onesearch.context.taste import Taste
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views import Source, ViewReader, ViewSettings
from onesearch.corpus import TRAIN, Corpus, Popularity, Requests, item_texts, popularity
from onesearch.corpus.offers import Offers, offer_kinds
from onesearch.corpus.popularity import DAY
from onesearch.embed import TextEncoder
from onesearch.files import read_json, write_json
from onesearch.model.catalogue import Catalogue
from onesearch.prefix import PrefixIndex
from onesearch.run import Run

QUERY_TOKENS = 32
"""A query is cut after so many tokens."""

HALF_LIVES = (14 * DAY, 182 * DAY)
"""The two popularity counts that the prior is given: of the last weeks, and of the last year."""

SLOT_FEATURES = len(FEATURES) + len(HALF_LIVES)
"""What describes a history slot: the features of `onesearch.context.history`, and how popular the item is now; then, a
number for each kind of offer, whether it is on offer."""


@dataclass(frozen=True)
class EncodedQueries:
    """n queries: their tokens one after the other, `offsets` (n + 1,) into them; and the queries as relevant texts."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    texts: RelevantTexts

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each query."""
        return np.diff(self.offsets)

    def take(self, rows: NDArray[np.integer]) -> EncodedQueries:
        """Some of the queries."""
        length = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(length)])
        place = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], length)
        return EncodedQueries(self.ids[place], offsets, self.texts.take(rows))

    @classmethod
    def joined(cls, parts: Sequence[EncodedQueries]) -> EncodedQueries:
        """The queries of all parts, of which there is one at least."""
        lengths = np.concatenate([part.lengths for part in parts])
        return cls(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([[0], np.cumsum(lengths)]),
            RelevantTexts.joined([part.texts for part in parts]),
        )


@dataclass(frozen=True)
class ContextBuilder:
    """Turns requests into tensors. `codes` is (N, L) int64; the items' vectors in the selector are of `taste`."""

    corpus: Corpus
    tokenizer: QueryTokenizer
    space: RelevanceSpace
    selector: HistorySelector
    taste: Taste
    codes: NDArray[np.int64]
    popularities: tuple[Popularity, ...]
    offers: Offers
    views: ViewReader

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        split: NDArray[np.int8],
        before: NDArray[np.int64],
        encoder: TextEncoder,
        codes: NDArray[np.integer],
        slots: int,
        seed: int,
        reads: ViewSettings = ViewSettings(),  # noqa: B008 (frozen)
        positions: int | None = None,
        run: Run | None = None,
        offers: bool = True,
    ) -> ContextBuilder:
        """Learn the tokenizer and the relevance space from the catalogue's texts and the training queries, and what
        users like from the training events `before` those that the generator learns from.

        Args:
            reads: what is read of the user.
            positions: of the encoder; None where any number will do.
            run: whose quantizer the view `uid` may ask.
            offers: whether what is on offer is read, where the corpus knows it.

        Raises:
            UserError: the log lacks what a view reads, or the encoder room for it.
        """
        asked = np.unique(corpus.query[(split == TRAIN) & (corpus.query >= 0)])
        sample = np.random.default_rng(seed).permutation(asked)[:100_000]
        texts = list(dict.fromkeys(item_texts(corpus)))
        tokenizer = QueryTokenizer.train([*texts, *(corpus.meant[query] for query in sample)])
        taste = Taste.fit(corpus, before, seed)
        space = RelevanceSpace.fit(texts, encoder, seed)
        kinds = offer_kinds(corpus) if offers else ()
        kept = {"slots": slots, "positions": positions, "offers": list(kinds), **asdict(reads)}
        return cls._join(corpus, tokenizer, space, taste, taste.items(corpus, before), codes, kept, run)

    def knowing(self, events: NDArray[np.int64]) -> ContextBuilder:
        """The same, with the items' taste vectors made of these events."""
        taste = self.taste.items(self.corpus, events)
        return replace(self, selector=self.selector.with_taste(taste))

    def save(self, folder: Path) -> None:
        """Write the tokenizer, the relevance space, the users' tastes, what views keep, and `context.json`."""
        self.tokenizer.save(folder)
        self.space.save(folder)
        self.taste.save(folder)
        self.views.save(folder)
        write_json(folder / "context.json", self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """What is read of the user, as JSON values: `context.json`."""
        reads = asdict(self.views.settings)
        offers = list(self.offers.kinds)
        return {"slots": self.selector.slots, "positions": self.views.room.positions, "offers": offers, **reads}

    @property
    def slot_features(self) -> int:
        """F, the numbers that describe a history slot."""
        return SLOT_FEATURES + len(self.offers.kinds)

    @classmethod
    def load(
        cls,
        corpus: Corpus,
        split: NDArray[np.int8],
        encoder: TextEncoder,
        codes: NDArray[np.integer],
        folder: Path,
        run: Run | None = None,
    ) -> ContextBuilder:
        """Read what `save` wrote; the items' taste vectors are made of all training events. `run` as for `fit`."""
        tokenizer, space = QueryTokenizer.load(folder), RelevanceSpace.load(folder, encoder)
        taste = Taste.load(folder)
        items = taste.items(corpus, np.flatnonzero(split == TRAIN))
        kept = read_json(folder / "context.json")
        return cls._join(corpus, tokenizer, space, taste, items, codes, kept, run, folder)

    @classmethod
    def _join(
        cls,
        corpus: Corpus,
        tokenizer: QueryTokenizer,
        space: RelevanceSpace,
        taste: Taste,
        items: NDArray[np.float32],
        codes: NDArray[np.integer],
        kept: dict[str, Any],
        run: Run | None,
        model: Path | None = None,
    ) -> ContextBuilder:
        """
        Args:
            kept: as in `settings`; a model of before there were views has no more than `slots`.
            model: the folder of the model that is loaded.
        """
        chosen = dict(kept)
        slots, positions = chosen.pop("slots"), chosen.pop("positions", None)
        offers = Offers.of(corpus, chosen.pop("offers", ()))
        reads = ViewSettings(**chosen | {"views": tuple(chosen.get("views", ()))})
        texts = item_texts(corpus)
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        relevant = space.encode(list(distinct)).take(np.array([distinct[text] for text in texts]))
        selector = HistorySelector(corpus, relevant, slots, items, reads.history)
        counts = tuple(popularity(corpus, half_life) for half_life in HALF_LIVES)
        wide: NDArray[np.int64] = codes.astype(np.int64)
        source = Source(corpus, wide, relevant.vectors, tokenizer, QUERY_TOKENS, run, model)
        views = ViewReader.make(reads, source, positions)
        return cls(corpus, tokenizer, space, selector, taste, wide, counts, offers, views)

    def catalogue(self, index: PrefixIndex) -> Catalogue:
        """What `Generator.bind` needs."""
        counts = [torch.from_numpy(one.counts) for one in self.popularities]
        bits = torch.from_numpy(self.selector.texts.present)
        return Catalogue.build(index, counts, torch.from_numpy(self.item_vectors), bits, self.offers)

    @property
    def item_vectors(self) -> NDArray[np.float32]:
        """(N, 128 + d) what is known of each item: its text in the relevance space, and its taste vector."""
        return np.hstack([self.selector.texts.vectors, self.selector.taste])

    def encode(self, queries: Sequence[str]) -> EncodedQueries:
        """Tokens and vectors of n queries, whatever their letters' case."""
        lower = [query.lower() for query in queries]
        ids, offsets = self.tokenizer.encode(lower, QUERY_TOKENS)
        return EncodedQueries(ids, offsets, self.space.encode(lower))

    def inputs(self, requests: Requests, queries: EncodedQueries | None = None) -> tuple[dict[str, Any], HistorySlots]:
        """The arguments of `Generator.read` for B requests, all of them tensors but `views`, which are tensors by name
        and left out where there are none; and the history slots behind them.

        Args:
            queries: of the requests, where they are encoded already.
        """
        queries = self.encode(requests.query) if queries is None else queries
        ids, offsets = queries.ids, queries.offsets
        slots = self.selector.select(requests, queries.texts)
        length = np.diff(offsets)
        slots, views = self.views.read(requests, slots, length)
        place = np.arange(max(int(length.max(initial=0)), 1))
        filled = place < length[:, None]
        query = np.full(filled.shape, self.tokenizer.pad, np.int64)
        query[filled] = ids
        terms, weights = queries.texts.padded()
        used = max(int((slots.item >= 0).sum(1).max(initial=0)), 1)
        item, features = slots.item[:, :used], slots.features[:, :used]
        snapshot = self.popularities[0].at(requests.time)
        popular = np.stack([np.log1p(one.counts[snapshot[:, None], item]) for one in self.popularities], -1) / 4
        row = self.offers.rows(requests)
        features = np.concatenate(
            [features, popular * (item >= 0)[..., None], self.offers.of_items(row, item)], -1, dtype=np.float32
        )
        filled[:, 0] |= item[:, 0] < 0  # an empty query without history still reads one padding token
        slot_codes = np.where(item[..., None] >= 0, self.codes[item], -1)
        inputs: dict[str, Any] = {
            "query_ids": torch.from_numpy(query),
            "query_mask": torch.from_numpy(filled),
            "slot_codes": torch.from_numpy(slot_codes),
            "slot_features": torch.from_numpy(features),
            "slot_coverage": torch.from_numpy(np.ascontiguousarray(features[..., FEATURES.index("coverage")])),
            "query_vector": torch.from_numpy(np.hstack([queries.texts.vectors, slots.taste.reshape(len(item), -1)])),
            "terms": torch.from_numpy(terms),
            "term_weights": torch.from_numpy(weights),
            "snapshot": torch.from_numpy(snapshot),
            "offer_row": torch.from_numpy(row),
        }
        if views:
            inputs["views"] = {name: torch.from_numpy(array) for name, array in views.items()}
        return inputs, slots
