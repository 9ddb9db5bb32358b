from dataclasses import replace
from pathlib import Path

import numpy as np

from onesearch.context.taste import Taste
from onesearch.corpus import Corpus
from onesearch.corpus.schema import EVENT_KINDS


def by_camp(shop: Corpus) -> tuple[Corpus, np.ndarray]:
    """The same log, but users of even number buy items of even number, and the others the others."""
    camp = np.arange(len(shop.items)) % 2
    drawn = np.random.default_rng(0).integers(0, len(shop.items) // 2, len(shop.item)) * 2
    kind = np.full_like(shop.kind, EVENT_KINDS.index("purchase"))
    return replace(shop, item=(drawn + shop.user % 2).astype(shop.item.dtype), kind=kind), camp


def test_items_that_the_same_users_bought_are_alike(shop: Corpus) -> None:
    corpus, camp = by_camp(shop)
    every = np.arange(len(corpus.item))
    vectors = Taste.fit(corpus, every, seed=0).items(corpus, every)
    bought = np.isin(np.arange(len(camp)), corpus.item)
    cosine = vectors[bought] @ vectors[bought].T
    same = camp[bought][:, None] == camp[bought]
    assert cosine[same].mean() > cosine[~same].mean() + 0.1
    np.testing.assert_allclose(np.linalg.norm(vectors[bought], axis=1), 1, atol=1e-5)
    assert not vectors[~bought].any()


def test_vectors_of_more_events_live_in_the_space_of_fewer(shop: Corpus) -> None:
    corpus, camp = by_camp(shop)
    half, every = np.arange(0, len(corpus.item), 2), np.arange(len(corpus.item))
    taste = Taste.fit(corpus, half, seed=0)
    cosine = taste.items(corpus, half) @ taste.items(corpus, every).T
    same = camp[:, None] == camp
    assert cosine[same].mean() > cosine[~same].mean() + 0.1


def test_impressions_are_no_choices_and_saving_keeps_the_factors(shop: Corpus, tmp_path: Path) -> None:
    corpus, _ = by_camp(shop)
    every = np.arange(len(corpus.item))
    taste = Taste.fit(corpus, every, seed=0)
    kind = corpus.kind.copy()
    shown = every[::3]
    kind[shown] = EVENT_KINDS.index("impression")
    np.testing.assert_array_equal(
        taste.items(replace(corpus, kind=kind), every), taste.items(corpus, np.setdiff1d(every, shown))
    )
    taste.save(tmp_path)
    np.testing.assert_array_equal(Taste.load(tmp_path).factors, taste.factors)


def test_nothing_to_learn_from_gives_vectors_of_no_width(shop: Corpus) -> None:
    taste = Taste.fit(shop, np.arange(0), seed=0)
    assert taste.items(shop, np.arange(len(shop.item))).shape == (len(shop.items), 0)
