"""From search requests to the generator's input tensors, and from the run folder back to the parts that make them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.context.history import HistorySelector, HistorySlots
from onesearch.context.relevance import RelevanceSpace
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.corpus import TRAIN, Corpus, Popularity, Requests, item_texts, popularity
from onesearch.corpus.popularity import DAY
from onesearch.embed import TextEncoder
from onesearch.files import read_json, write_json
from onesearch.prefix import PrefixIndex

QUERY_TOKENS = 32
"""A query is cut after so many tokens."""

HALF_LIVES = (14 * DAY, 182 * DAY)
"""The two popularity counts that the prior is given: of the last weeks, and of the last year."""


@dataclass(frozen=True)
class ContextBuilder:
    """Turns requests into tensors. `codes` is (N, L) int64, the items' semantic IDs."""

    corpus: Corpus
    tokenizer: QueryTokenizer
    space: RelevanceSpace
    selector: HistorySelector
    codes: NDArray[np.int64]
    popularities: tuple[Popularity, ...]

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        split: NDArray[np.int8],
        encoder: TextEncoder,
        codes: NDArray[np.integer],
        slots: int,
        seed: int,
    ) -> ContextBuilder:
        """Learn the tokenizer and the relevance space from the catalogue's texts and the training queries."""
        asked = np.unique(corpus.query[(split == TRAIN) & (corpus.query >= 0)])
        sample = np.random.default_rng(seed).permutation(asked)[:100_000]
        texts = list(dict.fromkeys(item_texts(corpus)))
        tokenizer = QueryTokenizer.train([*texts, *(corpus.queries[query] for query in sample)])
        return cls._join(corpus, tokenizer, RelevanceSpace.fit(texts, encoder, seed), codes, slots)

    def save(self, folder: Path) -> None:
        """Write the tokenizer, the relevance space and `context.json`."""
        self.tokenizer.save(folder)
        self.space.save(folder)
        write_json(folder / "context.json", {"slots": self.selector.slots})

    @classmethod
    def load(cls, corpus: Corpus, encoder: TextEncoder, codes: NDArray[np.integer], folder: Path) -> ContextBuilder:
        """Read what `save` wrote."""
        tokenizer, space = QueryTokenizer.load(folder), RelevanceSpace.load(folder, encoder)
        return cls._join(corpus, tokenizer, space, codes, read_json(folder / "context.json")["slots"])

    @classmethod
    def _join(
        cls,
        corpus: Corpus,
        tokenizer: QueryTokenizer,
        space: RelevanceSpace,
        codes: NDArray[np.integer],
        slots: int,
    ) -> ContextBuilder:
        texts = item_texts(corpus)
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        vectors = space.encode(list(distinct))[[distinct[text] for text in texts]]
        selector = HistorySelector(corpus, vectors, slots)
        counts = tuple(popularity(corpus, half_life) for half_life in HALF_LIVES)
        return cls(corpus, tokenizer, space, selector, codes.astype(np.int64), counts)

    def log_mass(self, index: PrefixIndex) -> list[Tensor]:
        """What `Generator.bind` needs: L tensors (S, M, P) float32 of log(1 + count) below every prefix."""
        masses = [index.mass(torch.from_numpy(counts.counts)) for counts in self.popularities]
        return [torch.stack(level, -1).log1p().float() for level in zip(*masses, strict=True)]

    def inputs(
        self,
        requests: Requests,
        query_vectors: NDArray[np.float32] | None = None,
        pieces: tuple[NDArray[np.int32], NDArray[np.int64]] | None = None,
    ) -> tuple[dict[str, Tensor], HistorySlots]:
        """The arguments of `Generator.read` for B requests, and the history slots behind them.

        Args:
            query_vectors: (B, D) the queries in the relevance space, where they are known already.
            pieces: the queries' tokens as `QueryTokenizer.encode` returns them, where they are known already.
        """
        if query_vectors is None:
            query_vectors = self.space.encode(requests.query)
        ids, offsets = self.tokenizer.encode(requests.query, QUERY_TOKENS) if pieces is None else pieces
        slots = self.selector.select(requests, query_vectors)
        length = np.diff(offsets)
        place = np.arange(max(int(length.max(initial=0)), 1))
        filled = place < length[:, None]
        query = np.full(filled.shape, self.tokenizer.pad, np.int64)
        query[filled] = ids
        used = max(int((slots.item >= 0).sum(1).max(initial=0)), 1)
        item, features = slots.item[:, :used], slots.features[:, :used]
        filled[:, 0] |= item[:, 0] < 0  # an empty query without history still reads one padding token
        slot_codes = np.where(item[..., None] >= 0, self.codes[item], -1)
        return {
            "query_ids": torch.from_numpy(query),
            "query_mask": torch.from_numpy(filled),
            "slot_codes": torch.from_numpy(slot_codes),
            "slot_features": torch.from_numpy(np.ascontiguousarray(features)),
            "snapshot": torch.from_numpy(self.popularities[0].at(requests.time)),
        }, slots
