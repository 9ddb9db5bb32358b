"""A search request as the text that a language model reads, in one fixed template.

    Query: cold cereal
    Semantic ID: <a_12><b_7><c_201>
    Searched: milk; oat flakes
    Bought: <a_12><b_7><c_0><d_1> x3; <a_4><b_9><c_1><d_0>
    Answer:

A line without content is left out. Past purchases come as semantic IDs, the most relevant to the query first, or the
latest first, with how often they were bought; past searches the latest first. What does not fit into the prompt is
dropped, the oldest first, and counted; the query always stays (its first `QUERY_TOKENS` tokens).

A prompt is put together from token ids, not from text: the tokens of a part do not depend on what stands beside it, and
a batch needs no loop over its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onesearch.context.history import HistorySelector
from onesearch.context.relevance import RelevanceSpace
from onesearch.context.views.room import Room
from onesearch.corpus import Corpus, Requests, item_texts
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.ragged import Ragged, TokenColumn

QUERY_TOKENS: Final = 32
"""A query is cut after so many tokens."""

REACH: Final = 512
"""At most so many past events of a user are looked at for the latest purchases and searches."""


@dataclass(frozen=True)
class PromptOptions:
    """What a prompt holds.

    Attributes:
        history: past purchases "relevant" to the query, the "recent" ones, or "none".
        items, searches: at most so many past purchases and past searches.
        counts: whether each purchase says how often it was made.
        query_sid: whether the semantic ID of the query follows it.
        tokens: at most so many tokens a prompt.
    """

    history: Literal["relevant", "recent", "none"] = "relevant"
    items: int = 8
    searches: int = 3
    counts: bool = True
    query_sid: bool = True
    tokens: int = 96


@dataclass(frozen=True)
class Prompts:
    """B prompts.

    Attributes:
        tokens: of each. event: (B, H) the past purchases in it, -1 where there are fewer.
        dropped: how many past purchases and searches of the B requests did not fit.
    """

    tokens: Ragged
    event: NDArray[np.int64]
    dropped: int


class TextTokens:
    """A tokenizer of Hugging Face, and what its model expects before and after a text."""

    def __init__(self, tokenizer: Any, encoder: bool) -> None:
        self.tokenizer = tokenizer
        probe, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
        place = next((at for at in range(len(probe)) if probe[at : at + len(plain)] == plain), 0)
        self.before: list[int] = probe[:place]
        self.after: list[int] = probe[place + len(plain) :] if encoder else []

    def __call__(self, texts: Sequence[str]) -> Ragged:
        """The tokens of n texts, without what stands around a text."""
        if not texts:
            return Ragged.of([])
        return Ragged.of(self.tokenizer(list(texts), add_special_tokens=False).input_ids)

    def framed(self, parts: Sequence[Ragged | str]) -> Ragged:
        """Prompts of the same number of rows: the parts side by side, a text the same for all of them."""
        rows = next(len(part) for part in parts if isinstance(part, Ragged))
        columns = [self._constant(part, rows) if isinstance(part, str) else part for part in parts]
        return Ragged.side_by_side([Ragged.repeated(self.before, rows), *columns, Ragged.repeated(self.after, rows)])

    def _constant(self, text: str, rows: int) -> Ragged:
        return Ragged.repeated(self([text]).ids.tolist(), rows)


class RelevantPurchases:
    """The past purchases that matter for a query; see `onesearch.context.history`."""

    def __init__(self, corpus: Corpus, space: RelevanceSpace, items: int) -> None:
        texts = item_texts(corpus)
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        relevant = space.encode(list(distinct)).take(np.array([distinct[text] for text in texts]))
        self.space, self._selector = (
            space,
            HistorySelector(corpus, relevant, items, np.zeros((len(texts), 1), np.float32)),
        )

    def __call__(self, requests: Requests) -> NDArray[np.int64]:
        """(B, H) events, the most relevant first, -1 where there are fewer."""
        distinct = {text: place for place, text in enumerate(dict.fromkeys(requests.query))}
        queries = self.space.encode(list(distinct)).take(
            np.array([distinct[text] for text in requests.query], np.int64)
        )
        return self._selector.select(requests, queries).event


class PromptWriter:
    """Writes the prompts of requests.

    Args:
        words: the model's tokens.
        sid_tokens: (N, L) tokens of the items' semantic IDs.
        relevant: finds the past purchases that matter for the queries; not called with another `history`.
        query_sids: texts -> the tokens of their semantic IDs; not called without `query_sid`.

    Attributes:
        room: counts what did not fit, and tells when it is asked to.
    """

    def __init__(
        self,
        corpus: Corpus,
        words: TextTokens,
        sid_tokens: NDArray[np.int64],
        options: PromptOptions,
        relevant: RelevantPurchases | None = None,
        query_sids: Callable[[Sequence[str]], Ragged] | None = None,
    ) -> None:
        self.corpus, self.words, self.options = corpus, words, options
        self.relevant, self.query_sids = relevant, query_sids
        self.room = Room(options.tokens)
        self._sid = Ragged.full(sid_tokens)
        self.queries = TokenColumn(corpus.meant, words)
        counts = [f" x{count}" for count in range(2, 100)]
        self._counts = TokenColumn(["", "", *counts], words)

    def write(
        self, requests: Requests, keywords: Ragged | None = None, text: bool = True, ask: str = "Answer:"
    ) -> Prompts:
        """The prompts of B requests.

        Args:
            keywords: tokens of each request's keywords; they follow the history (a teacher reads them).
            text: False leaves the query's own words out, and only its semantic ID stays.
            ask: the last line.
        """
        total, options = len(requests), self.options
        head: list[Ragged | str] = ["Query: ", self.words(requests.query).cut(QUERY_TOKENS)] if text else []
        if options.query_sid or not text:
            if self.query_sids is None:
                raise ValueError("nothing here gives queries semantic IDs")
            head += ["\nSemantic ID: " if text else "Semantic ID: ", self.query_sids(requests.query)]
        tail: list[Ragged | str] = [] if keywords is None else ["\nKeywords: ", keywords]
        whole = self.words.framed([*head, *tail, f"\n{ask}"])
        searched, bought = self._searched(requests), self._bought(requests)
        labels = self.words(["\nSearched: ", "\nBought: ", "; "])
        room = options.tokens - whole.lengths - labels.lengths[:2].sum()
        row = np.concatenate([searched.row, bought.row])
        event = np.concatenate([searched.event, bought.event])
        pieces = Ragged.stack([searched.tokens, bought.tokens])
        kept = _latest_that_fit(row, event, pieces.lengths + labels.lengths[2], room)
        number = len(searched.row)
        history = [
            _line(total, part, label, labels.take(np.array([2])), keep)
            for part, label, keep in (
                (searched, labels.take(np.array([0])), kept[:number]),
                (bought, labels.take(np.array([1])), kept[number:]),
            )
        ]
        dropped = np.bincount(row[~kept], minlength=total)
        self.room.count(dropped)
        given = np.full((total, max(options.items, 1)), -1, np.int64)
        rows, events = bought.row[kept[number:]], bought.event[kept[number:]]
        given[rows, np.arange(len(rows)) - np.searchsorted(rows, rows)] = events
        return Prompts(self.words.framed([*head, *history, *tail, f"\n{ask}"]), given, int(dropped.sum()))

    def _bought(self, requests: Requests) -> _Pieces:
        """Past purchases of B requests, by request."""
        if self.options.history == "none" or self.options.items == 0:
            return _Pieces.none()
        if self.options.history == "relevant":
            if self.relevant is None:
                raise ValueError("nothing here finds relevant purchases")
            events = self.relevant(requests)
            row, _ = np.nonzero(events >= 0)
            event = events[events >= 0]
        else:
            row, event = _past(requests)
            chosen = self.corpus.kind[event] > EVENT_KINDS.index("impression")
            last = chosen & (self.corpus.next_same[event] >= requests.history_end[row])
            row, event = _latest(row[last], event[last], self.options.items)
        tokens = self._sid.take(self.corpus.item[event])
        if self.options.counts:
            tokens = Ragged.side_by_side([tokens, self._counts[np.minimum(self.corpus.nth_same[event] + 1, 99)]])
        return _Pieces(row, event, tokens)

    def _searched(self, requests: Requests) -> _Pieces:
        """Past searches of B requests, each text once, by request."""
        if self.options.history == "none" or self.options.searches == 0:
            return _Pieces.none()
        row, event = _past(requests)
        asked = self.corpus.query[event] >= 0
        row, event = row[asked], event[asked]
        pair = row * max(len(self.corpus.queries), 1) + self.corpus.query[event]
        _, place = np.unique(pair[::-1], return_index=True)  # the last event of each pair
        kept = np.sort(len(pair) - 1 - place)
        row, event = _latest(row[kept], event[kept], self.options.searches)
        return _Pieces(row, event, self.queries[self.corpus.query[event]].cut(QUERY_TOKENS))


@dataclass(frozen=True)
class _Pieces:
    """P pieces of history: whose request, of which event, and their tokens."""

    row: NDArray[np.int64]
    event: NDArray[np.int64]
    tokens: Ragged

    @classmethod
    def none(cls) -> _Pieces:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), Ragged.of([]))


def _past(requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) rows and events of the last `REACH` events before each request."""
    start = np.maximum(requests.history_start, requests.history_end - REACH)
    length = requests.history_end - start
    row = np.repeat(np.arange(len(requests)), length)
    return row, np.arange(length.sum()) + np.repeat(start - np.cumsum(length) + length, length)


def _latest(row: NDArray[np.int64], event: NDArray[np.int64], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The `most` latest events of each row, the latest first."""
    order = np.lexsort((-event, row))
    row, event = row[order], event[order]
    kept = np.arange(len(row)) - np.searchsorted(row, row) < most
    return row[kept], event[kept]


def _latest_that_fit(
    row: NDArray[np.int64], event: NDArray[np.int64], length: NDArray[np.int64], room: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(P,) whether a piece is among the latest of its row that fit into the row's room together."""
    order = np.lexsort((-event, row))
    used = np.cumsum(length[order])
    first = np.searchsorted(row[order], row[order])
    used -= used[first] - length[order][first]
    kept = np.empty(len(row), bool)
    kept[order] = used <= room[row[order]]
    return kept


def _line(total: int, pieces: _Pieces, label: Ragged, separator: Ragged, kept: NDArray[np.bool_]) -> Ragged:
    """One line of the template for B requests: the label, then the pieces with a separator between them."""
    row, tokens = pieces.row[kept], pieces.tokens.take(np.flatnonzero(kept))
    before = np.where(np.diff(row, prepend=-1) != 0, 0, 1)  # the label, or the separator
    return Ragged.side_by_side([Ragged.stack([label, separator]).take(before), tokens]).merged(row, total)
