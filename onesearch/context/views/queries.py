"""The user's last queries before the request, each with its age.

OneSearch (2509.03236) writes them into the prompt. Here each is one encoder position, the mean of its tokens'
embeddings (our choice: eight queries cost eight positions, however long they are). Events one after the other with the
same query are one search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views.past import Past
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.popularity import DAY


class PastQueries:
    """`past_query_ids` (Q, n, T) int64; `past_query_weights` (Q, n, T) float32 that sum to 1, or to 0 where a place is
    empty; `past_query_age` (Q, n) float32, log days. The latest query comes first."""

    def __init__(self, corpus: Corpus, tokenizer: QueryTokenizer, most: int, tokens: int) -> None:
        """
        Args:
            most: n. tokens: the most that are read of a query.
        """
        self._corpus, self._tokenizer, self._most, self._tokens = corpus, tokenizer, most, tokens
        begins = np.zeros(len(corpus.query), bool)
        for span in corpus.spans():
            asked = span.start + np.flatnonzero(corpus.query[span] >= 0)
            query, user = corpus.query[asked], corpus.user[asked]
            first = np.ones(len(asked), bool)
            first[1:] = (query[1:] != query[:-1]) | (user[1:] != user[:-1])
            begins[asked[first]] = True
        self._past = Past(corpus, begins)

    def sizes(self) -> dict[str, Any]:
        return {}

    def latest(self, requests: Requests) -> NDArray[np.int64]:
        """(Q, n) the events at which each request's last queries were asked, -1 where there are fewer."""
        return self._past.latest(requests, self._most)

    def read(self, requests: Requests, event: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """
        Args:
            event: (Q, n) as of `latest`, perhaps with fewer of them.
        """
        event = event[:, : max(int((event >= 0).sum(1).max(initial=0)), 1)]
        held = event >= 0
        asked, row = np.unique(self._corpus.query[event[held]], return_inverse=True)
        ids, offsets = self._tokenizer.encode([self._corpus.meant[query] for query in asked], self._tokens)
        length = np.diff(offsets)
        filled = np.arange(max(int(length.max(initial=0)), 1)) < length[:, None]
        padded = np.full(filled.shape, self._tokenizer.pad, np.int64)
        padded[filled] = ids
        tokens = np.full((*event.shape, filled.shape[1]), self._tokenizer.pad, np.int64)
        weights = np.zeros(tokens.shape, np.float32)
        tokens[held] = padded[row]
        weights[held] = (filled / np.maximum(length, 1)[:, None])[row]
        unit = DAY if self._corpus.has_clock else 1
        days = np.maximum(requests.time[:, None] - self._corpus.time[event], 0) / unit
        age = np.where(held, np.log1p(days) / 4, 0).astype(np.float32)
        return {"past_query_ids": tokens, "past_query_weights": weights, "past_query_age": age}

    def save(self, folder: Path) -> None:
        """Nothing: it is made of the log."""
