"""AUC, gAUC and calibration: against scikit-learn, by hand, and draw by draw against pairs that are really repeated."""

import re

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from eval.auc import auc, aucs_of_groups, group_auc
from eval.calibration import calibration_error, equal_bins, predicted_over_observed, reliability
from eval.charts import Line, reliability_plot
from eval.metrics import Bootstrap, Drawn, per_list


@pytest.fixture
def pairs():
    """600 pairs of 60 queries of 12 users, with many equal scores, of which two are infinite."""
    rng = np.random.default_rng(0)
    row = np.sort(rng.integers(0, 60, 600))
    right = rng.random(600) < 0.3
    scores = np.round(rng.normal(0, 1, 600) + right, 1)
    scores[:20:10] = -np.inf
    return scores, right, row, rng.integers(0, 12, 60)


def repeated(user, drawn):
    """The places of the pairs, each as often as its user was drawn."""
    return np.repeat(np.arange(len(user)), drawn[user].astype(int))


def test_auc_and_its_draws_are_those_of_scikit_learn(pairs):
    scores, right, row, users = pairs
    draws = Bootstrap(users, resamples=40)
    found = auc(scores, right, row, draws)
    finite = np.where(np.isinf(scores), -99, scores)
    assert found.value == roc_auc_score(right, finite)
    user = draws.group[row]
    for drawn, value in zip(draws.drawn, found.draws, strict=True):
        kept = repeated(user, drawn)
        assert value == pytest.approx(roc_auc_score(right[kept], finite[kept]), abs=1e-12)


def test_auc_draws_do_not_depend_on_how_many_are_made_at_once(pairs, monkeypatch):
    scores, right, row, users = pairs
    draws = Bootstrap(users, resamples=40)
    whole = auc(scores, right, row, draws)
    monkeypatch.setattr("eval.auc._CELLS", 1)
    np.testing.assert_array_equal(auc(scores, right, row, draws).draws, whole.draws)


def test_auc_of_one_class_is_not_a_number(pairs):
    scores, right, row, users = pairs
    assert np.isnan(auc(scores, np.zeros_like(right), row, Bootstrap(users)).value)
    alone = auc(scores, right & (users[row] == 0), row, Bootstrap(users))
    drawn_without = Bootstrap(users).drawn[:, 0] == 0
    np.testing.assert_array_equal(np.isnan(alone.draws), drawn_without)
    assert drawn_without.any()
    assert np.isfinite(alone.estimate().low)


def test_gauc_is_the_weighted_mean_of_the_groups(pairs):
    scores, right, row, users = pairs
    finite = np.where(np.isinf(scores), -99, scores)
    draws = Bootstrap(users, resamples=30)
    for group in (row, draws.group[row]):
        found = group_auc(scores, right, group, row, draws)
        kept = [g for g in np.unique(group) if 0 < right[group == g].sum() < (group == g).sum()]
        values = np.array([roc_auc_score(right[group == g], finite[group == g]) for g in kept])
        sizes = np.array([(group == g).sum() for g in kept])
        assert (found.counted, found.groups) == (len(kept), len(np.unique(group)))
        assert found.drawn.value == pytest.approx((sizes * values).sum() / sizes.sum(), abs=1e-12)
        user_of = np.array([draws.group[row[group == g][0]] for g in kept])
        weight = draws.drawn[:, user_of] * sizes
        np.testing.assert_allclose(found.drawn.draws, (weight * values).sum(1) / weight.sum(1))


def test_groups_of_one_class_have_no_auc():
    values, sizes = aucs_of_groups(
        np.array([1.0, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 0], bool), np.array([0, 0, 2, 2, 2])
    )
    np.testing.assert_array_equal(values, [np.nan, np.nan, 0])
    np.testing.assert_array_equal(sizes, [2, 0, 3])


def test_calibration_worked_out_by_hand():
    predicted, right = np.repeat([0.1, 0.6], 100), np.zeros(200, bool)
    right[:20] = right[100:150] = True  # .2 where .1 was predicted, .5 where .6 was
    row, draws = np.arange(200), Bootstrap(np.arange(200))
    bins = equal_bins(predicted, 2)
    assert calibration_error(predicted, right, bins, row, draws).value == pytest.approx(0.1)
    assert calibration_error(predicted, right, np.zeros(200, int), row, draws).value == pytest.approx(0)
    assert predicted_over_observed(predicted, right, row, draws).value == pytest.approx(1)
    curve = reliability(predicted, right, bins)
    np.testing.assert_allclose(curve.predicted, [0.1, 0.6])
    np.testing.assert_allclose(curve.observed, [0.2, 0.5])
    assert curve.pairs.tolist() == [100, 100]


def test_calibration_draws_are_those_of_repeated_pairs(pairs):
    scores, right, row, users = pairs
    predicted = 1 / (1 + np.exp(-scores))
    draws = Bootstrap(users, resamples=20)
    bins = equal_bins(predicted, 5)
    assert np.bincount(bins).min() > 80
    found, pcoc = (
        calibration_error(predicted, right, bins, row, draws),
        predicted_over_observed(predicted, right, row, draws),
    )
    for number, drawn in enumerate(draws.drawn):
        kept = repeated(draws.group[row], drawn)
        gaps = [abs((right[kept] - predicted[kept])[bins[kept] == one].sum()) for one in range(5)]
        assert found.draws[number] == pytest.approx(sum(gaps) / len(kept))
        assert pcoc.draws[number] == pytest.approx(predicted[kept].sum() / right[kept].sum())


def test_a_calibrated_prediction_has_nearly_no_error_and_a_doubled_one_has():
    rng = np.random.default_rng(1)
    predicted = rng.beta(1, 9, 100_000)
    right = rng.random(100_000) < predicted
    row, draws = np.arange(100_000) // 20, Bootstrap(np.arange(5_000) // 10)
    good, doubled = (
        calibration_error(one, right, equal_bins(one), row, draws) for one in (predicted, np.minimum(2 * predicted, 1))
    )
    assert good.value < 0.008
    assert doubled.value == pytest.approx(0.1, abs=0.01)
    assert doubled.minus(good).p_value() < 0.01
    pcoc = predicted_over_observed(2 * predicted, right, row, draws).estimate()
    assert pcoc.low < 2 < pcoc.high


def test_lists_with_several_right_answers():
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(30) for _ in range(40)]).astype(np.int32)
    labels = rng.integers(0, 3, items.shape) * (rng.random(items.shape) < 0.3)
    labels[3] = 0
    found = per_list(items, labels, ["ndcg@10", "mrr@10", "recall@5"])
    for q, row in enumerate(labels):
        expected = 0 if not row.any() else ndcg_score([row], [-np.arange(30)], k=10)
        assert found["ndcg@10"][q] == pytest.approx(expected)
        places = np.flatnonzero(row)
        assert found["mrr@10"][q] == pytest.approx(1 / (places[0] + 1) if len(places) and places[0] < 10 else 0)
        assert found["recall@5"][q] == pytest.approx((places < 5).mean() if len(places) else 0)


def test_a_p_value_is_small_only_where_draws_agree():
    assert Drawn(1.0, np.ones(999)).p_value() == pytest.approx(0.002)
    assert Drawn(0.0, np.zeros(999)).p_value() == 1
    assert Drawn(0.1, np.linspace(-1, 1, 1001)).p_value() == pytest.approx(1, abs=0.01)


def test_a_perfect_prediction_lies_on_the_line_of_the_picture():
    picture = str(reliability_plot("shares", [Line("one", [(0.1, 0.1), (0.1, 0.5), (0.02, 0.0)])]))
    marks = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="2.5" fill="(#\w+|none)"', picture)
    (x, y, _), (_, above, _), (_, bottom, hollow) = marks
    line = re.search(r'<line x1="(\d+)" y1="(\d+)" x2="(\d+)" y2="(\d+)" stroke-dasharray', picture)
    left, low, end, high = map(float, line.groups())
    assert float(x) - left == pytest.approx(low - float(y)), "as far right as up"
    assert high < float(above) < float(y) < float(bottom) == low
    assert hollow == "none"
    assert float(x) == pytest.approx((left + end) / 2), "the axis is from .01 to 1"
