"""Items ranked by how well their text fits the query, plus a weight times fresh popularity; shared by BM25 and dense.

Many items share one text, so their order among each other is popularity's: with the smallest weight it only breaks
ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.pairs import numbered
from eval.baselines.popularity import FreshPopularity, pad
from eval.baselines.text import Texts
from onesearch.corpus import Requests

TIE_BREAK: Final = 1e-4
POPULARITY_WEIGHTS: Final = (TIE_BREAK, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
Relevance = Callable[[Sequence[str]], NDArray[np.float32]]
"""Queries to their (q, T) relevance between 0 and 1 for every distinct text."""

_CELLS: Final = 4_000_000  # of a block of scores: 16 MB


@dataclass(frozen=True)
class TextRanking:
    """Scores `relevance(query, text of item) + weight * log popularity(item)`.

    Attributes:
        half_life: of the popularity, in days.
    """

    relevance: Relevance
    texts: Texts
    fresh: FreshPopularity
    half_life: float
    weight: float

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(Q, k) best items and their scores."""
        width = min(k, len(self.texts.of_item))
        same, first = self._distinct(requests)
        found = np.empty((len(first), width), np.int32)
        found_scores = np.empty((len(first), width), np.float32)
        for block, block_scores in self._blocks(requests, first):
            found[block], found_scores[block] = best(block_scores, width)
        return pad(found[same], k, -1), pad(found_scores[same], k, -np.inf)

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """(Q, K) scores of given items (Q, K)."""
        scores = np.empty(items.shape, np.float32)
        snapshots, logs = self.fresh.table(self.half_life)
        at = snapshots.at(requests.time)
        size = max(1, _CELLS // max(1, len(self.texts.distinct)))
        for start in range(0, len(requests), size):
            rows = slice(start, start + size)
            queries, query = numbered(requests.query[rows])
            scores[rows] = self.relevance(queries)[query[:, None], self.texts.of_item[items[rows]]]
        return scores + np.float32(self.weight) * logs[at[:, None], items]

    def ranks_of_targets(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q,) how many items score above the target, and how many others score the same."""
        better = np.empty(len(requests), np.int64)
        ties = np.empty(len(requests), np.int64)
        for block, scores in self._blocks(requests, np.arange(len(requests))):
            own = np.take_along_axis(scores, requests.target[block, None].astype(np.int64), axis=1)
            better[block] = (scores > own).sum(axis=1)
            ties[block] = (scores == own).sum(axis=1) - 1
        return better, ties

    def _distinct(self, requests: Requests) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(Q,) which answer a request gets, and one request for each: equal queries in one week have equal answers."""
        _, query = numbered(requests.query)
        snapshots, _ = self.fresh.table(self.half_life)
        key = query * len(snapshots.starts) + snapshots.at(requests.time)
        _, first, same = np.unique(key, return_index=True, return_inverse=True)
        return same, first

    def _blocks(
        self, requests: Requests, chosen: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Positions in `chosen`, and the (n, N) scores of those requests; a bounded number of cells at a time."""
        snapshots, logs = self.fresh.table(self.half_life)
        at = snapshots.at(requests.time[chosen])
        size = max(1, _CELLS // max(1, len(self.texts.of_item)))
        for start in range(0, len(chosen), size):
            block = np.arange(start, min(start + size, len(chosen)))
            scores = self.relevance([requests.query[i] for i in chosen[block]])[:, self.texts.of_item]
            scores += self.weight * logs[at[block]]
            yield block, scores


def best(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(n, k) the columns of the k greatest of (n, N) scores, greatest first, and those scores."""
    # One whole number a cell, first the falling score, then the column: equal scores keep the order of the items, also
    # where the k-th place cuts through them.
    bits = (np.float32(0) - scores).view(np.int32)
    key = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32) | np.arange(scores.shape[1])
    if k < scores.shape[1]:
        key = np.partition(key, k - 1, axis=1)[:, :k]
    columns = np.sort(key, axis=1) & 0xFFFFFFFF
    return columns.astype(np.int32), np.take_along_axis(scores, columns, axis=1)
