"""Semantic IDs of users: worked out by hand, and the nearest code of a mean."""

from pathlib import Path

import numpy as np
from catalogues import random_codes
from view_logs import NO_SLOTS, MakeLog

from onesearch.context.views.centroids import Centroids
from onesearch.context.views.uid import LONG, SHORT, Uid, recency_weights, rounded_up
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.run import Run
from onesearch.semantic_ids import text_quantizer
from onesearch.sid import SidTable


def test_weights_are_those_of_the_paper() -> None:
    weights = recency_weights(np.array([3, 0, 1]), 4)
    raw = np.exp(np.sqrt([3, 2, 1]))
    np.testing.assert_allclose(weights[0], [*(raw / raw.sum()), 0])
    np.testing.assert_array_equal(weights[1:], [[0, 0, 0, 0], [1, 0, 0, 0]])
    assert np.isfinite(recency_weights(np.array([100_000]), 256)).all()


def test_the_paper_rounds_the_weighted_mean_of_code_indices_up(make_log: MakeLog) -> None:
    """Clicks on items with codes (4, 9) and then (7, 1): .398 * 4 + .602 * 7 = 5.8, .398 * 9 + .602 * 1 = 4.2."""
    corpus = make_log(
        [
            (0, 0, "click", 0, None, None),
            (0, 1, "click", 1, None, None),
            (0, 2, "purchase", 2, None, None),
            (0, 2, "purchase", 3, None, None),
        ]
    )
    codes = np.zeros((12, 2))
    codes[:3] = [[4, 9], [7, 1], [3, 3]]
    view = Uid(corpus, codes, rounded_up)
    found = view.read(Requests.of(corpus, np.arange(4)), NO_SLOTS)["uid_codes"]
    assert found.shape == (4, 2, 2) and view.positions == 4
    assert (found[0] == -1).all(), "nothing came before"
    assert found[1].tolist() == [[4, 9], [-1, -1]]
    assert found[2].tolist() == [[6, 5], [-1, -1]]
    assert found[3, 1].tolist() == [3, 3], "orders only, and a mean of equal codes is that code"


def test_only_the_latest_events_count(make_log: MakeLog) -> None:
    corpus = make_log([(0, int(n >= 5), "purchase", n, None, None) for n in range(LONG + 6)])
    codes = np.zeros((12, 1))
    codes[0] = 200
    found = Uid(corpus, codes, rounded_up).read(Requests.of(corpus, np.array([SHORT + 5, LONG + 5])), NO_SLOTS)
    short, long = found["uid_codes"][:, :, 0].T
    assert short.tolist() == [0, 0], "the first five are out of reach of the short past"
    assert long[0] > 0 and long[1] == 0


def test_the_nearest_code_of_one_item_is_its_own(make_log: MakeLog) -> None:
    corpus = make_log([(0, n % 12, "purchase", n // 2, None, f"s{n}") for n in range(12)])
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 12, (3, 4, 2), unique=True)
    vectors = (codes @ np.diag([100.0, 10, 1])).astype(np.float32)
    view = Uid(corpus, vectors, Centroids.of(codes, vectors).nearest)
    found = view.read(Requests.of(corpus, np.arange(12)), NO_SLOTS)["uid_codes"]
    np.testing.assert_array_equal(found[1, 0], codes[corpus.item[0]])


def test_the_quantizer_of_a_run_gives_items_their_own_codes(quantized_run: Path) -> None:
    """So that the mean of one item is that item."""
    run, corpus = Run.open(quantized_run), Corpus.load(quantized_run / "corpus")
    found = text_quantizer(run, corpus, make_split(corpus))
    assert found is not None
    quantizer, vectors = found
    codes = SidTable.load(quantized_run / "sid").codes
    np.testing.assert_array_equal(quantizer.encode(vectors), codes[:, :-1])  # the last level is one of ranks


def test_nearest_goes_down_the_tree_of_means_as_a_slow_reading_does() -> None:
    rng = np.random.default_rng(1)
    codes = random_codes(rng, 40, (4, 3, 5), unique=False)
    vectors = rng.standard_normal((40, 6), np.float32)
    asked = rng.standard_normal((9, 6), np.float32)
    found = Centroids.of(codes, vectors).nearest(asked)
    for row, vector in enumerate(asked):
        below = np.ones(40, bool)
        for level in range(3):
            options = {code: vectors[below & (codes[:, level] == code)].mean(0) for code in set(codes[below, level])}
            best = min(options, key=lambda code: float(((options[code] - vector) ** 2).sum()))
            assert found[row, level] == best
            below &= codes[:, level] == best


def test_residuals_add_up_to_the_item_where_its_semantic_id_is_its_own() -> None:
    rng = np.random.default_rng(2)
    codes = random_codes(rng, 30, (4, 3, 5), unique=True)
    vectors = rng.standard_normal((30, 6), np.float32)
    table, rows = Centroids.of(codes, vectors).residuals()
    np.testing.assert_allclose(table.numpy()[rows].sum(1), vectors, atol=1e-5)
