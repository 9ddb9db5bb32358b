"""BM25 over item texts, by words and (for misspelt queries) character trigrams; everything about it is tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.popularity import HALF_LIVES, FreshPopularity
from eval.baselines.remembered import Remembered
from eval.baselines.text import TextIndex, Texts, relative
from eval.baselines.text_ranking import POPULARITY_WEIGHTS, TextRanking
from eval.baselines.tune import coordinate_search, reciprocal_rank
from onesearch.corpus import Requests

GRID: Final[dict[str, Sequence[float]]] = {
    "trigrams": (0.0, 0.05, 0.1, 0.2, 0.4),
    "popularity": POPULARITY_WEIGHTS,
    "b": (0.0, 0.4, 0.75, 1.0),
    "k1": (0.02, 0.1, 0.4, 1.2),
    "half_life_days": HALF_LIVES,
}
START: Final = {"trigrams": 0.1, "popularity": 0.4, "b": 0.75, "k1": 0.1, "half_life_days": 28.0}


class BM25:
    """BM25 of words + `trigrams` times BM25 of trigrams, as a share of the query's best

    To that comes `popularity` times log popularity. With `trigrams` at 0 it is BM25 over words alone.
    """

    name = "bm25"
    calibrated = logarithmic = False

    def __init__(self, index: TextIndex, texts: Texts, fresh: FreshPopularity, tuned: dict[str, Any]) -> None:
        self.tuned = tuned
        self._index = index
        index.set(tuned["k1"], tuned["b"])
        self.ranking = TextRanking(self.relevance, texts, fresh, tuned["half_life_days"], tuned["popularity"])

    @classmethod
    def fit(cls, texts: Texts, fresh: FreshPopularity, valid: Requests) -> BM25:
        """Choose every setting by MRR@10 on `valid`."""
        index, asked = TextIndex(texts), Remembered(valid.query)

        def objective(**tuned: float) -> float:
            tried = cls(index, texts, fresh, tuned)
            relevance = asked.of(tried.relevance, tuned["trigrams"], tuned["b"], tuned["k1"])
            return reciprocal_rank(*replace(tried.ranking, relevance=relevance).ranks_of_targets(valid))

        return cls(index, texts, fresh, coordinate_search(objective, GRID, START, rounds=2))

    def relevance(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(q, T) between 0 and 1, for every distinct text."""
        scores = self._index.word_scores(queries)
        if self.tuned["trigrams"] > 0:
            scores += self.tuned["trigrams"] * self._index.trigram_scores(queries)
        return relative(scores)

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        return self.ranking.rank(requests, k)

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        return self.ranking.score(requests, items)
