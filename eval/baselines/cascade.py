"""The multi-stage system that a generative one replaces: recall by BM25 and dense retrieval, ranked by LambdaMART.

Burges, "From RankNet to LambdaRank to LambdaMART" (2010), as LightGBM has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.baselines.bm25 import BM25
from eval.baselines.dense import Dense
from eval.baselines.features import Column, Features
from eval.baselines.popularity import FreshPopularity, pad
from eval.baselines.remembered import Remembered
from eval.baselines.text import Texts
from eval.baselines.text_ranking import TextRanking
from eval.baselines.tune import coordinate_search
from onesearch.corpus import TRAIN, Corpus, Requests, sample_requests
from onesearch.corpus.split import late

if TYPE_CHECKING:
    import lightgbm

CANDIDATES: Final = 300
RECALL_GRID: Final[dict[str, Sequence[float]]] = {
    "dense": (0.0, 0.1, 0.3, 1.0),
    "popularity": (0.02, 0.05, 0.1, 0.2, 0.4, 0.8),
}
RECALL_START: Final = {"dense": 0.1, "popularity": 0.2}
LATE: Final = 0.15
"""The ranker learns from requests of this last share of the training period: there its features look as they will when
it serves, with a long past behind them."""
_BLOCK: Final = 256

PARAMETERS: Final[dict[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambdarank_truncation_level": 20,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
ROUNDS: Final = 400
PATIENCE: Final = 30


class Cascade:
    """Recall of 300 by `BM25 relevance + dense * cosine + popularity * log popularity`, then LightGBM LambdaMART."""

    name = "cascade"
    calibrated = logarithmic = False

    def __init__(
        self,
        texts: Texts,
        bm25: BM25,
        dense: Dense,
        fresh: FreshPopularity,
        features: Features,
    ) -> None:
        self._texts, self._bm25, self._dense, self._fresh, self.features = texts, bm25, dense, fresh, features
        self._ranker: lightgbm.Booster | None = None
        self.tuned: dict[str, Any] = dict(RECALL_START)

    def tune_recall(self, valid: Requests) -> float:
        """Choose how the two retrievers and popularity are added up, by Recall@300 on `valid`; returns that recall."""

        asked = Remembered(valid.query)

        def objective(dense: float, popularity: float) -> float:
            recall = self._recall(dense, popularity)
            better, _ = replace(recall, relevance=asked.of(recall.relevance, dense)).ranks_of_targets(valid)
            return float((better < CANDIDATES).mean())

        self.tuned |= coordinate_search(objective, RECALL_GRID, RECALL_START, rounds=2)
        return objective(**{name: self.tuned[name] for name in RECALL_GRID})

    def _recall(self, dense: float, popularity: float) -> TextRanking:
        def relevance(queries: Sequence[str]) -> NDArray[np.float32]:
            return self._bm25.relevance(queries) + np.float32(dense) * self._dense.cosines(queries)

        return TextRanking(relevance, self._texts, self._fresh, self._bm25.tuned["half_life_days"], popularity)

    def blocks(self, requests: Requests) -> Iterator[tuple[slice, NDArray[np.int32], dict[str, Column]]]:
        """Rows of the requests, their (B, C) candidates, and features by name, each (B, C)."""
        recall = self._recall(self.tuned["dense"], self.tuned["popularity"])
        count = min(CANDIDATES, len(self._texts.of_item))
        items, scores = recall.rank(requests, count)
        for start in range(0, len(requests), _BLOCK):
            rows = slice(start, start + _BLOCK)
            yield rows, items[rows], self.features(requests.part(rows), items[rows], scores[rows])

    def train_ranker(self, late: Requests, valid: Requests, *, sampled: int = 100, seed: int = 0) -> None:
        """Learn to rank candidates of late training requests; stop when `valid` no longer gets better.

        Of each request's candidates the target and `sampled` others are learnt from, drawn uniformly: were the hard
        ones preferred, a low place in the recall would look like a sign of being right.
        """
        import lightgbm

        draws = np.random.default_rng(seed)
        learn = self._dataset(late, sampled, draws)
        check = self._dataset(valid, CANDIDATES, draws, reference=learn)
        self._ranker = lightgbm.train(
            PARAMETERS | {"seed": seed},
            learn,
            num_boost_round=ROUNDS,
            valid_sets=[check],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        self.tuned["trees"] = self._ranker.best_iteration

    def _dataset(
        self, requests: Requests, sampled: int, draws: np.random.Generator, reference: lightgbm.Dataset | None = None
    ) -> lightgbm.Dataset:
        """Features of the requests whose target was recalled, in groups."""
        import lightgbm

        values, labels, sizes = [], [], []
        names: list[str] = []
        for rows, items, features in self.blocks(requests):
            names = list(features)
            right = items == requests.target[rows, None]
            luck = np.argsort(np.argsort(draws.random(items.shape), axis=1), axis=1)
            kept = (right | (luck < sampled)) & right.any(axis=1, keepdims=True)
            values.append(np.stack([column[kept] for column in features.values()], axis=1))
            labels.append(right[kept])
            sizes.append(kept.sum(axis=1))
        group = np.concatenate(sizes)
        return lightgbm.Dataset(
            np.concatenate(values),
            np.concatenate(labels),
            group=group[group > 0],
            feature_name=names,
            reference=reference,
        )

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """See `System.rank`."""
        found, found_scores = [], []
        for _, items, features in self.blocks(requests):
            scores = self._ranked(features)
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            found.append(np.take_along_axis(items, order, axis=1))
            found_scores.append(np.take_along_axis(scores, order, axis=1))
        return pad(np.concatenate(found), k, -1), pad(np.concatenate(found_scores), k, -np.inf)

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `Scorer.score`. The ranking stage, whatever the recall would find; features that compare a candidate with
        the best one compare it with the best of these items."""
        there = items >= 0
        filled = np.where(there, items, np.take_along_axis(items, there.argmax(axis=1)[:, None], axis=1)).clip(min=0)
        recall = self._recall(self.tuned["dense"], self.tuned["popularity"])
        scores = np.empty(items.shape, np.float32)
        for start in range(0, len(requests), _BLOCK):
            rows = slice(start, start + _BLOCK)
            asked = requests.part(rows)
            scores[rows] = self._ranked(self.features(asked, filled[rows], recall.score(asked, filled[rows])))
        return scores

    def _ranked(self, features: dict[str, Column]) -> NDArray[np.float32]:
        """What the ranker says of (B, C) candidates."""
        if self._ranker is None:
            raise RuntimeError("train_ranker comes first")
        matrix = np.stack([column.ravel() for column in features.values()], axis=1)
        shape = features["recall"].shape
        return np.asarray(self._ranker.predict(matrix)).reshape(shape).astype(np.float32)


def late_requests(corpus: Corpus, split: NDArray[np.int8], size: int, seed: int) -> Requests:
    """Requests of the last part of the training period (of every user's, where the log has no clock)."""
    learnt = (split == TRAIN) & late(corpus, split, LATE)
    return sample_requests(corpus, np.where(learnt, TRAIN, -1).astype(np.int8), TRAIN, size, seed)
