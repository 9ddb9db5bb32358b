import numpy as np
import pytest

from eval.metrics import METRICS, Bootstrap, per_query
from onesearch.errors import UserError


def test_values_worked_out_by_hand():
    items = np.array([[5, 6, 7], [6, 5, 7], [6, 7, 5], [1, 2, -1]], np.int32)
    values = per_query(items, np.full(4, 5, np.int32), ["mrr@2", "mrr@3", "ndcg@10", "recall@1", "recall@2"])
    np.testing.assert_allclose(values["mrr@2"], [1, 1 / 2, 0, 0])
    np.testing.assert_allclose(values["mrr@3"], [1, 1 / 2, 1 / 3, 0])
    np.testing.assert_allclose(values["ndcg@10"], [1, 1 / np.log2(3), 1 / 2, 0])
    np.testing.assert_allclose(values["recall@1"], [1, 0, 0, 0])
    np.testing.assert_allclose(values["recall@2"], [1, 1, 0, 0])


def test_metrics_agree_with_the_place_of_the_target():
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(80)[:50] for _ in range(200)]).astype(np.int32)
    items[:5, 20:] = -1
    items[7] = -1
    targets = rng.integers(0, 80, 200).astype(np.int32)
    place = np.where((items == targets[:, None]).any(axis=1), (items == targets[:, None]).argmax(axis=1), 1000)
    values = per_query(items, targets)
    assert tuple(values) == METRICS
    for cut in (1, 5, 10, 50):
        np.testing.assert_allclose(values[f"recall@{cut}"], place < cut)
    np.testing.assert_allclose(values["mrr@10"], np.where(place < 10, 1 / (place + 1), 0))
    np.testing.assert_allclose(values["ndcg@10"], np.where(place < 10, 1 / np.log2(place + 2), 0))


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match="unknown metric: 'precision@0'"):
        per_query(np.zeros((1, 1), np.int32), np.zeros(1, np.int32), ["precision@0"])


def test_a_ranking_with_an_item_twice_is_refused():
    with pytest.raises(ValueError, match="ranking 1 holds an item twice"):
        per_query(np.array([[1, 2], [3, 3]], np.int32), np.zeros(2, np.int32))


def test_an_interval_holds_the_mean_and_the_same_seed_gives_the_same():
    rng = np.random.default_rng(0)
    users, values = rng.integers(0, 50, 400), rng.random(400)
    one = Bootstrap(users, seed=3).mean(values)
    assert one == Bootstrap(users, seed=3).mean(values)
    assert one.low < one.mean < one.high
    assert one.mean == pytest.approx(values.mean())
    # The standard error of 400 independent uniform values is .0144; the interval is 3.92 of them wide.
    assert one.high - one.low == pytest.approx(3.92 * np.sqrt(1 / 12 / 400), rel=0.25)


def test_queries_of_one_user_are_not_independent():
    of_user = np.random.default_rng(0).random(40)
    values = np.repeat(of_user, 25)
    clustered = Bootstrap(np.repeat(np.arange(40), 25)).mean(values)
    pretended = Bootstrap(np.arange(1000)).mean(values)
    assert clustered.high - clustered.low > 3 * (pretended.high - pretended.low)


def test_a_paired_difference_is_tighter_than_the_two_intervals():
    rng = np.random.default_rng(0)
    users, hardness = rng.integers(0, 100, 500), rng.random(500)
    better, worse = hardness + 0.02 + rng.normal(0, 0.01, 500), hardness
    bootstrap = Bootstrap(users)
    difference = bootstrap.difference(better, worse)
    assert 0 < difference.low < 0.02 < difference.high
    assert bootstrap.mean(worse).high > bootstrap.mean(better).low
    assert bootstrap.difference(worse, worse).as_dict() == {"mean": 0, "low": 0, "high": 0}
