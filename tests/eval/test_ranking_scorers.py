"""The generator as a scorer, fusions, and scores that are no numbers."""

import numpy as np
import pytest

from eval.rank_fusion import KINDS, Fusion, reciprocal_ranks, z_scores
from eval.ranked_lists import from_union
from eval.scorers import GeneratorScores, scores_of
from onesearch.corpus import TEST, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.retriever import Retriever


@pytest.fixture(scope="module")
def shop(trained_run):
    """The trained generator, 20 searches, and a list of every item for each."""
    retriever = Retriever.load(trained_run)
    requests = sample_requests(retriever.corpus, make_split(retriever.corpus), TEST, 20, 0)
    every = np.tile(np.arange(len(retriever.corpus.items), dtype=np.int32), (20, 1))
    return retriever, requests, from_union({"all": every}, requests, retriever.corpus)


def test_the_generator_shares_out_all_probability(shop, monkeypatch):
    retriever, _, lists = shop
    scorer = GeneratorScores(retriever, one_answer=True)
    scores = scores_of(scorer, lists)
    assert scorer.calibrated
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, atol=1e-5)
    monkeypatch.setattr("eval.scorers.PAIRS", 100)
    np.testing.assert_allclose(scores_of(scorer, lists), scores, atol=1e-5)
    assert not GeneratorScores(retriever, one_answer=False).calibrated


def test_given_items_get_the_scores_that_the_search_finds(shop):
    retriever, requests, _ = shop
    items, found = retriever.rank(requests, 10)
    items[3, 7:] = -1
    scores = GeneratorScores(retriever).score(requests, items)
    np.testing.assert_allclose(scores[items >= 0], found[items >= 0], atol=1e-5)
    assert np.isneginf(scores[3, 7:]).all()


class Broken:
    name, calibrated, logarithmic = "broken", False, False

    def score(self, requests, items):
        scores = np.zeros(items.shape)
        scores[2, 5] = np.nan
        return scores


def test_a_score_that_is_no_number_is_named(shop):
    _, _, lists = shop
    item = lists.item_ids[lists.items[2, 5]]
    message = f"scorer 'broken', list {lists.queries[2]}, item {item}: 1 scores are not numbers"
    with pytest.raises(UserError, match=message):
        scores_of(Broken(), lists)


def test_ranks_and_z_scores_worked_out_by_hand():
    scores = np.array([[3.0, 1.0, 2.0, -np.inf], [5.0, 5.0, 9.0, 7.0]])
    there = np.array([[True, True, True, False], [True, True, False, True]])
    ranks = np.divide(1, reciprocal_ranks(scores, there), where=there, out=np.full((2, 4), np.nan))
    np.testing.assert_allclose(ranks, [[61, 63, 62, np.nan], [62.5, 62.5, np.nan, 61]])
    z = z_scores(scores, there)
    np.testing.assert_allclose(z[0, :3], np.array([1, -1, 0]) / np.sqrt(2 / 3))
    assert z[~there].tolist() == [0, 0]
    np.testing.assert_allclose(z.sum(axis=1), 0, atol=1e-12)
    np.testing.assert_array_equal(z_scores(np.full((1, 3), -np.inf), np.ones((1, 3), bool)), np.zeros((1, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_find_who_knows_and_leave_out_who_does_not(kind):
    rng = np.random.default_rng(0)
    right = np.zeros((400, 20), bool)
    right[np.arange(400), rng.integers(0, 20, 400)] = True
    right[:50] = False
    scores = {
        "one": right + rng.normal(0, 0.5, right.shape),
        "other": right + rng.normal(0, 0.5, right.shape),
        "noise": 100 * rng.normal(size=right.shape),
    }
    there = np.ones(right.shape, bool)
    fused = Fusion.tuned(kind, KINDS[kind], scores, there, right)
    assert fused.weights["noise"] < 0.2 * min(fused.weights["one"], fused.weights["other"])

    def found(values):
        return (values.argmax(axis=1) == right.argmax(axis=1))[50:].mean()

    assert found(fused(scores, there)) > max(found(scores["one"]), found(scores["other"])) + 0.02
