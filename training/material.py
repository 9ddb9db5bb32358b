"""What tasks are made of: the texts, semantic IDs, categories and keywords of a run, as tokens.

Nothing is written to disk: a batch is gathered from the corpus when it is needed, and a text is tokenised when it is
first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onesearch.context.prompt import PromptWriter
from onesearch.corpus import TRAIN, Corpus, Requests
from onesearch.corpus.split import target_kind
from onesearch.embed.keywords import Keywords, item_keyword_texts
from onesearch.ragged import Ragged, TokenColumn

MOST_KEYWORDS: Final = 4
"""Of one text."""
ANSWER_TOKENS: Final = 48
"""A text that is to be written is cut after so many tokens."""


@dataclass(frozen=True)
class Example:
    """n examples of one task: what is read, and what is to be written."""

    prompt: Ragged
    answer: Ragged


class Material:
    """What tasks are made of.

    Args:
        targets: events that may be learnt from: (n,) ascending.
    """

    def __init__(
        self,
        corpus: Corpus,
        split: NDArray[np.int8],
        writer: PromptWriter,
        sid_tokens: NDArray[np.int64],
        targets: NDArray[np.int64],
        on_sale: NDArray[np.int64],
        end: int | None,
    ) -> None:
        self.corpus, self.split, self.writer, self.targets = corpus, split, writer, targets
        self.words, self.items, self._end = writer.words, on_sale, end
        self._sid = Ragged.full(sid_tokens)
        self.titles = TokenColumn(corpus.items["title"].to_list(), self.words)

    def frame(self, *parts: Ragged | str) -> Ragged:
        """A prompt: the parts side by side, with what the model expects around a text."""
        return self.words.framed(parts)

    def text(self, tokens: Ragged) -> Ragged:
        """An answer in words: cut where it is too long, and ended."""
        end = [] if self._end is None else [self._end]
        return Ragged.side_by_side([tokens.cut(ANSWER_TOKENS), Ragged.repeated(end, len(tokens))])

    def sids(self, items: NDArray[np.integer]) -> Ragged:
        """Semantic IDs of items."""
        return self._sid.take(items)

    def query_sids(self, queries: NDArray[np.integer]) -> Ragged:
        """Semantic IDs of queries of the corpus."""
        return self._query_sid_column[queries]

    def query_texts(self, queries: NDArray[np.integer]) -> Ragged:
        """Queries of the corpus."""
        return self.writer.queries[queries]

    def requests(self, events: NDArray[np.int64]) -> Requests:
        """The searches behind events."""
        return Requests.of(self.corpus, events)

    @cached_property
    def categories(self) -> TokenColumn:
        """Of each item, root to leaf."""
        paths = self.corpus.items["categories"].list.join(" > ").fill_null("")
        return TokenColumn(paths.to_list(), self.words)

    @cached_property
    def with_category(self) -> NDArray[np.int64]:
        """Items that have one."""
        return self.items[self.corpus.items["categories"].list.len().fill_null(0).to_numpy()[self.items] > 0]

    @cached_property
    def asked(self) -> NDArray[np.int64]:
        """Training events with a query that led to an item."""
        corpus = self.corpus
        led = (self.split == TRAIN) & (corpus.query >= 0) & (corpus.kind >= target_kind(corpus))
        return np.flatnonzero(led)

    @cached_property
    def training_queries(self) -> NDArray[np.int64]:
        """The distinct queries of training events."""
        return np.unique(self.corpus.query[self.asked]).astype(np.int64)

    @cached_property
    def keywords(self) -> Keywords:
        """Of the catalogue."""
        return Keywords.of(self.corpus)

    @cached_property
    def query_keywords(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ascending pairs of a query of the corpus and a keyword in it."""
        found = self.keywords.find(self.corpus.meant)
        return found.text, found.keyword

    @cached_property
    def keyword_queries(self) -> NDArray[np.int64]:
        """Training queries that have a keyword."""
        return np.intersect1d(self.training_queries, self.query_keywords[0])

    @cached_property
    def wished_events(self) -> NDArray[np.int64]:
        """Events to learn from whose query or whose item has a keyword."""
        known = np.isin(self.corpus.query[self.targets], self.query_keywords[0])
        return self.targets[known]

    def keywords_of(self, queries: NDArray[np.integer]) -> Ragged:
        """(n,) queries -> rows of numbers of keywords, at most `MOST_KEYWORDS` each."""
        text, keyword = self.query_keywords
        return _ragged(text, keyword, len(self.corpus.queries)).take(queries).cut(MOST_KEYWORDS)

    def wishes(self, events: NDArray[np.int64]) -> Ragged:
        """(n,) events -> rows of numbers of keywords of the query and of what the user wants.

        The keywords of the query, and those of the item that was bought which the user's history has too. The paper
        lets a language model calibrate keywords to the user's preferences; this is our completion without one.
        """
        corpus, requests, number = self.corpus, self.requests(events), len(self.keywords.texts)
        asked = _ragged(*self.query_keywords, len(corpus.queries) + 1).take(corpus.query[events])
        bought = self._item_keywords.take(corpus.item[events])
        row = np.repeat(np.arange(len(events)), bought.lengths)
        given = self.writer.write(requests).event
        seen_row, place = np.nonzero(given >= 0)
        seen = self._item_keywords.take(corpus.item[given[seen_row, place]])
        liked = np.isin(row * number + bought.ids, np.repeat(seen_row, seen.lengths) * number + seen.ids)
        asked_row = np.repeat(np.arange(len(events)), asked.lengths)
        new = ~np.isin(row * number + bought.ids, asked_row * number + asked.ids) & liked
        rows = np.concatenate([asked_row, row[new]])
        both = np.concatenate([asked.ids, bought.ids[new]])
        order = np.argsort(rows, kind="stable")
        return _ragged(rows[order], both[order], len(events)).cut(MOST_KEYWORDS)

    def keyword_texts(self, keywords: Ragged) -> Ragged:
        """Rows of numbers of keywords -> their texts, with a comma between them."""
        return self._listed(keywords, self._keyword_column)

    def keyword_sids(self, keywords: Ragged) -> Ragged:
        """Rows of numbers of keywords -> the semantic IDs that queries with their texts have."""
        row = np.repeat(np.arange(len(keywords)), keywords.lengths)
        return self._keyword_sid_column[keywords.ids].merged(row, len(keywords))

    @cached_property
    def _item_keywords(self) -> Ragged:
        found = self.keywords.find(item_keyword_texts(self.corpus))
        return _ragged(found.text, found.keyword, len(self.corpus.items))

    @cached_property
    def _keyword_column(self) -> TokenColumn:
        return TokenColumn([text.lower() for text in self.keywords.texts], self.words)

    @cached_property
    def _keyword_sid_column(self) -> TokenColumn:
        return TokenColumn(self.keywords.texts, self._encode_sids)

    @cached_property
    def _query_sid_column(self) -> TokenColumn:
        return TokenColumn(self.corpus.queries, self._encode_sids)

    @property
    def _encode_sids(self) -> Callable[..., Ragged]:
        if self.writer.query_sids is None:
            raise ValueError("semantic IDs of queries were not asked for")
        return self.writer.query_sids

    def _listed(self, keywords: Ragged, column: TokenColumn) -> Ragged:
        row = np.repeat(np.arange(len(keywords)), keywords.lengths)
        comma = Ragged.stack([Ragged.of([[]]), self.words([", "])])
        begins = np.where(np.diff(row, prepend=-1) != 0, 0, 1)
        return Ragged.side_by_side([comma.take(begins), column[keywords.ids]]).merged(row, len(keywords))


def _ragged(row: NDArray[np.integer], value: NDArray[np.integer], rows: int) -> Ragged:
    """Ascending rows and a value of each -> the values of every row."""
    return Ragged(value.astype(np.int64), np.searchsorted(row, np.arange(rows + 1)).astype(np.int64))
