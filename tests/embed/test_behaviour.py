import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onesearch.corpus import TRAIN, VALID, Corpus, Tables, write_corpus
from onesearch.corpus.schema import EVENTS
from onesearch.corpus.tables import FILE, ROW
from onesearch.embed import behaviour_vectors
from onesearch.embed.behaviour import MAX_SESSION


def corpus_of(folder: Path, baskets: list[list[int]], items: int, sessions: bool = True) -> Corpus:
    """One user a basket."""
    rows = [
        {"user_id": f"{u:04}", "item_id": str(item), "timestamp": 1000 * u + place, "event": "purchase",
         "session_id": f"s{u}" if sessions else None}
        for u, basket in enumerate(baskets)
        for place, item in enumerate(basket)
    ]  # fmt: skip
    located = {FILE: pl.lit("made up"), ROW: pl.lit(1, pl.UInt32)}
    catalogue = pl.DataFrame({"item_id": [str(i) for i in range(items)], "title": "x"}).with_columns(**located)
    events = pl.DataFrame(rows, schema=EVENTS).with_columns(**located)
    write_corpus(folder / "corpus", Tables(items=catalogue, events=events), source="test")
    return Corpus.load(folder / "corpus")


def all_training(corpus: Corpus) -> NDArray[np.int8]:
    return np.full(len(corpus.user), TRAIN, np.int8)


def kitchen_and_garden(seed: int = 0) -> list[list[int]]:
    """Baskets of items 0-9 or of items 10-19."""
    rng = np.random.default_rng(seed)
    return [list(map(int, 10 * (b % 2) + rng.choice(10, 4, replace=False))) for b in range(200)]


@pytest.mark.parametrize("sessions", [True, False])
def test_items_taken_together_are_near(tmp_path: Path, sessions: bool) -> None:
    corpus = corpus_of(tmp_path, kitchen_and_garden(), items=20, sessions=sessions)
    vectors = behaviour_vectors(corpus, all_training(corpus), dimension=2, seed=0)
    likeness = vectors @ vectors.T
    assert likeness[:10, :10].min() > 0.9
    assert likeness[10:, 10:].min() > 0.9
    assert np.abs(likeness[:10, 10:]).max() < 0.1


def test_hand_worked_ppmi(tmp_path: Path) -> None:
    # pairs {0,1} twice and {0,2} once: counts of 0, 1, 2 are 3, 2, 1 of 6;
    # pmi(0,1) = log(2 * 6 / (3 * 2)) = log 2 = pmi(0,2) = log(1 * 6 / (3 * 1)), so 1 and 2 get the same vector.
    corpus = corpus_of(tmp_path, [[0, 1], [1, 0, 1], [0, 2], [3]], items=4)
    vectors = behaviour_vectors(corpus, all_training(corpus), dimension=4, seed=0)
    np.testing.assert_allclose(vectors[1] @ vectors[2], 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0] @ vectors[1], 0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)  # 3 was always alone
    assert not vectors[:, 2:].any()  # the counts have rank two
    from onesearch.embed.behaviour import _ppmi, _session_counts

    ppmi = _ppmi(_session_counts(corpus, np.arange(len(corpus.user)))).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 0] = expected[0, 2] = expected[2, 0] = math.log(2)
    np.testing.assert_allclose(ppmi, expected, atol=1e-6)


def test_what_is_not_for_training_is_not_seen(tmp_path: Path) -> None:
    baskets = kitchen_and_garden()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    without = corpus_of(tmp_path / "a", baskets, items=20)
    expected = behaviour_vectors(without, all_training(without), dimension=2, seed=0)
    corpus = corpus_of(tmp_path / "b", [*baskets, *[[0, 10]] * 50], items=20)
    split = np.where(corpus.user < 200, TRAIN, VALID).astype(np.int8)
    np.testing.assert_array_equal(behaviour_vectors(corpus, split, dimension=2, seed=0), expected)


def test_one_seed_gives_the_same_vectors_on_any_number_of_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = 12_000  # a linear algebra library splits a sum from some ten thousand terms on
    corpus = corpus_of(tmp_path, [list(map(int, rng.zipf(1.2, 12) % items)) for _ in range(4000)], items=items)
    runs = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            runs.append(behaviour_vectors(corpus, all_training(corpus), dimension=32, seed=5))
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[1], runs[2])


def test_a_log_without_pairs_and_an_endless_session(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone = corpus_of(tmp_path / "a", [[0], [1], [1, 1]], items=3)
    assert not behaviour_vectors(alone, all_training(alone), dimension=2, seed=0).any()
    endless = corpus_of(tmp_path / "b", [list(range(3 * MAX_SESSION))], items=3 * MAX_SESSION)
    vectors = behaviour_vectors(endless, all_training(endless), dimension=3, seed=0)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.9  # of one part
    assert abs(likeness[0, MAX_SESSION]) < 0.1  # of two
