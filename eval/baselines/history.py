"""The user's own history: what fits the query, what this user buys again and again, what everybody buys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.bm25 import BM25
from eval.baselines.pairs import find_pairs, numbered, top_of_pairs
from eval.baselines.popularity import HALF_LIVES, FreshPopularity, day
from eval.baselines.purchases import OwnItems, Purchases
from eval.baselines.text import Texts
from eval.baselines.text_ranking import TextRanking
from eval.baselines.tune import coordinate_search, reciprocal_rank
from onesearch.corpus import Corpus, Requests

GRID: Final[dict[str, Sequence[float]]] = {
    "own": (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8),
    "popularity": (0.05, 0.1, 0.15, 0.2, 0.3, 0.5),
    "own_half_life_days": (7.0, 14.0, 28.0, 56.0, 112.0, 224.0, 448.0),
    "sharpness": (0.5, 1.0, 1.5, 2.0, 3.0),
    "half_life_days": HALF_LIVES,
}
START: Final = {"own": 0.2, "popularity": 0.1, "own_half_life_days": 56.0, "sharpness": 1.5, "half_life_days": 28.0}
_BLOCK: Final = 1000


class OwnHistory:
    """BM25 relevance ** sharpness + own * log(1 + own purchases, fading) + popularity * log popularity.

    Candidates are all own purchases and the best of the rest by the two other terms, so the ranking is exact over the
    whole catalogue.
    """

    name = "own history"
    calibrated = logarithmic = False

    def __init__(
        self,
        corpus: Corpus,
        bm25: BM25,
        texts: Texts,
        fresh: FreshPopularity,
        purchases: Purchases,
        tuned: dict[str, Any],
    ) -> None:
        self.tuned = tuned
        self._corpus, self._bm25, self._texts, self._fresh, self._purchases = corpus, bm25, texts, fresh, purchases
        self._others = TextRanking(self._relevance, texts, fresh, tuned["half_life_days"], tuned["popularity"])

    @classmethod
    def fit(
        cls, corpus: Corpus, bm25: BM25, texts: Texts, fresh: FreshPopularity, purchases: Purchases, valid: Requests
    ) -> OwnHistory:
        """Choose every setting by MRR@10 on `valid`, over own purchases and the 200 best of BM25."""
        top, _ = bm25.rank(valid, 200)
        own = purchases.before(valid)
        row, item = _joined(own, top, len(corpus.items))
        queries, query = numbered(valid.query)
        fits = bm25.relevance(queries)[query[row], texts.of_item[item]]
        place = find_pairs(row, item, own.row, own.item, len(corpus.items))
        right = item == valid.target[row]
        now = valid.time[own.row]

        def objective(**tuned: float) -> float:
            faded = purchases.faded_at(tuned["own_half_life_days"] * day(corpus), own.event, now)
            snapshots, logs = fresh.table(tuned["half_life_days"])
            score = fits ** np.float32(tuned["sharpness"]) + tuned["popularity"] * logs[snapshots.at(now_of), item]
            score += tuned["own"] * np.log1p(
                np.append(faded, np.float32(0))[place]
            )  # the last for place -1: not bought
            of_target = np.full(len(valid), np.inf, np.float32)  # a target that is no candidate: nothing beats it, ...
            of_target[row[right]] = score[right]
            better = np.bincount(row, weights=score > of_target[row], minlength=len(valid)).astype(np.int64)
            return reciprocal_rank(np.where(np.isinf(of_target), len(corpus.items), better))  # ... and it earns nothing

        now_of = valid.time[row]
        return cls(corpus, bm25, texts, fresh, purchases, coordinate_search(objective, GRID, START))

    def _relevance(self, queries: Sequence[str]) -> NDArray[np.float32]:
        return self._bm25.relevance(queries) ** np.float32(self.tuned["sharpness"])

    def score_pairs(
        self, requests: Requests, row: NDArray[np.int64], item: NDArray[np.int32], own: OwnItems
    ) -> NDArray[np.float32]:
        """(P,) scores of pairs of a request and an item; `own` is what `Purchases.before` gives for the requests."""
        queries, query = numbered(requests.query)
        score = self._relevance(queries)[query[row], self._texts.of_item[item]]
        snapshots, logs = self._fresh.table(self.tuned["half_life_days"])
        score += self.tuned["popularity"] * logs[snapshots.at(requests.time[row]), item]
        half_life = self.tuned["own_half_life_days"] * day(self._corpus)
        faded = self._purchases.faded_at(half_life, own.event, requests.time[own.row])
        place = find_pairs(row, item, own.row, own.item, len(self._corpus.items))
        return score + self.tuned["own"] * np.log1p(np.append(faded, np.float32(0))[place])

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        items = np.empty((len(requests), k), np.int32)
        scores = np.empty((len(requests), k), np.float32)
        for start in range(0, len(requests), _BLOCK):
            rows = slice(start, start + _BLOCK)
            asked = requests.part(rows)
            own = self._purchases.before(asked)
            # So many that k are left of those that the user never bought.
            most = int(np.bincount(own.row, minlength=1).max())
            others, other_scores = self._others.rank(asked, min(k + most, len(self._corpus.items)))
            row, column = np.nonzero(others >= 0)
            item, score = others[row, column], other_scores[row, column]
            new = find_pairs(row, item, own.row, own.item, len(self._corpus.items)) < 0
            items[rows], scores[rows] = top_of_pairs(
                np.concatenate([own.row, row[new]]),
                np.concatenate([own.item, item[new]]),
                np.concatenate([self.score_pairs(asked, own.row, own.item, own), score[new]]),
                len(asked),
                k,
            )
        return items, scores

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        scores = np.empty(items.shape, np.float32)
        for start in range(0, len(requests), _BLOCK):
            rows = slice(start, start + _BLOCK)
            asked = requests.part(rows)
            row = np.repeat(np.arange(len(asked)), items.shape[1])
            own = self._purchases.before(asked)
            scores[rows] = self.score_pairs(asked, row, items[rows].ravel(), own).reshape(-1, items.shape[1])
        return scores


def _joined(own: OwnItems, top: NDArray[np.int32], items: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The pairs of both, each once."""
    row, column = np.nonzero(top >= 0)
    keys = np.unique(np.concatenate([own.row * np.int64(items) + own.item, row * np.int64(items) + top[row, column]]))
    return keys // items, (keys % items).astype(np.int32)
