"""Dense retrieval: the same text encoder as the generator's, inner products over item texts in faiss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from eval.baselines.popularity import HALF_LIVES, FreshPopularity
from eval.baselines.remembered import Remembered
from eval.baselines.text import Texts
from eval.baselines.text_ranking import POPULARITY_WEIGHTS, TextRanking
from eval.baselines.tune import coordinate_search, reciprocal_rank
from onesearch.corpus import Requests
from onesearch.embed import TextEncoder

GRID: Final[dict[str, Sequence[float]]] = {"popularity": POPULARITY_WEIGHTS, "half_life_days": HALF_LIVES}
START: Final = {"popularity": 0.2, "half_life_days": 28.0}
NEAREST: Final = 300
"""How many of the distinct texts are looked up; the rest counts as unrelated."""


class Dense:
    """Cosine of query and item text + `popularity` times log popularity (which also orders items of equal text)."""

    name = "dense"
    calibrated = logarithmic = False

    def __init__(self, texts: Texts, fresh: FreshPopularity, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._index = faiss.IndexFlatIP(encoder.dimension)
        self._vectors = encoder.encode(texts.distinct)
        self._index.add(self._vectors)
        self._texts, self._fresh = texts, fresh
        self._tune(START)

    def _tune(self, tuned: dict[str, Any]) -> TextRanking:
        self.tuned = tuned
        self.ranking = TextRanking(
            self.relevance, self._texts, self._fresh, tuned["half_life_days"], tuned["popularity"]
        )
        return self.ranking

    @classmethod
    def fit(cls, texts: Texts, fresh: FreshPopularity, encoder: TextEncoder, valid: Requests) -> Dense:
        """Choose the weight and the half-life of popularity by MRR@10 on `valid`."""
        system = cls(texts, fresh, encoder)
        relevance = Remembered(valid.query).of(system.relevance)

        def objective(**tuned: float) -> float:
            return reciprocal_rank(*replace(system._tune(tuned), relevance=relevance).ranks_of_targets(valid))

        system._tune(coordinate_search(objective, GRID, START))
        return system

    def relevance(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(q, T) cosine for the texts nearest to each query, -1 for the others."""
        scores = np.full((len(queries), self._index.ntotal), -1, np.float32)
        found, texts = self._index.search(self._encoder.encode(queries), min(NEAREST, self._index.ntotal))
        np.put_along_axis(scores, texts, found, axis=1)
        return scores

    def cosines(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(q, T) cosine for all texts."""
        return self._encoder.encode(queries) @ self._vectors.T

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        return self.ranking.rank(requests, k)

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`. Every text has its cosine here, also those that are not among the nearest."""
        return replace(self.ranking, relevance=self.cosines).score(requests, items)
