"""All baselines, fitted on the training part of a log and tuned on validation requests."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from eval.baselines import System
from eval.baselines.bm25 import BM25
from eval.baselines.cascade import LATE, Cascade, late_requests
from eval.baselines.dense import Dense
from eval.baselines.features import Features
from eval.baselines.history import OwnHistory
from eval.baselines.popularity import FreshPopularity, PopularitySystem
from eval.baselines.purchases import Purchases
from eval.baselines.sasrec import SASRec
from eval.baselines.text import Texts
from onesearch.context.taste import Taste
from onesearch.corpus import TRAIN, Corpus, Requests, item_texts
from onesearch.corpus.split import late
from onesearch.embed import TextEncoder
from onesearch.errors import UserError

logger = logging.getLogger(__name__)

BASELINES = 5


HISTORY_BASELINES = 2


def fit_history_baselines(
    corpus: Corpus,
    split: NDArray[np.int8],
    valid: Requests,
    content: NDArray[np.float32],
    *,
    without: Collection[str] = (),
    seed: int = 0,
    fitted: Callable[[int], None] = lambda count: None,
) -> list[System]:
    """Popularity and SASRec, for a log without queries: nothing to be said by systems that compare texts.

    Args:
        content: (N, V) unit vectors of the items, those that the generator is given.
        without: names of systems to leave out.
    """
    systems: list[System] = [PopularitySystem.fit(FreshPopularity(corpus), valid)]
    fitted(1)
    if SASRec.name not in without:
        systems.append(SASRec.fit(corpus, split, content, valid, seed))
    fitted(HISTORY_BASELINES)
    return systems


def fit_baselines(
    corpus: Corpus,
    split: NDArray[np.int8],
    valid: Requests,
    encoder: TextEncoder,
    *,
    train_requests: int = 12_000,
    seed: int = 0,
    fitted: Callable[[int], None] = lambda count: None,
) -> list[System]:
    """Popularity, BM25, dense retrieval, own history and the cascade.

    Args:
        corpus: the log of which all systems see the same past.
        split: which of its events are for training.
        valid: requests that every setting is chosen on; settings of text are chosen on every second one.
        encoder: the text encoder of the generator.
        train_requests: how many training requests the cascade's ranker learns from.
        seed: of samples and the ranker.
        fitted: called with the number of systems that are ready.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise UserError("the cascade needs the package lightgbm", remedy="pip install 'onesearch[demo]'")
    half = valid.part(slice(None, None, 2))
    fresh, purchases, texts = FreshPopularity(corpus), Purchases(corpus), Texts.of(item_texts(corpus))
    systems: list[System] = []

    def add(system: System) -> None:
        systems.append(system)
        logger.info("%s tuned: %s", system.name, system.tuned)
        fitted(len(systems))

    add(PopularitySystem.fit(fresh, valid))
    bm25 = BM25.fit(texts, fresh, half)
    add(bm25)
    dense = Dense.fit(texts, fresh, encoder, half)
    add(dense)
    history = OwnHistory.fit(corpus, bm25, texts, fresh, purchases, valid)
    add(history)
    # As the generator does: tastes are learnt from the events before those of the ranker, and then known of all.
    training = split == TRAIN
    before = np.flatnonzero(training & ~late(corpus, split, LATE))
    taste = Taste.fit(corpus, before, seed)
    features = Features(corpus, texts, bm25, dense, history, fresh, purchases, taste.items(corpus, before))
    cascade = Cascade(texts, bm25, dense, fresh, features)
    cascade.tune_recall(half)
    cascade.train_ranker(late_requests(corpus, split, train_requests, seed), half, seed=seed)
    cascade.features = features.with_taste(taste.items(corpus, np.flatnonzero(training)))
    add(cascade)
    return systems
