"""The baselines on a made-up shop in which everybody mostly buys a favourite brand."""

import json

import numpy as np
import pytest

from eval.baselines.bm25 import BM25
from eval.baselines.bm25 import START as BM25_START
from eval.baselines.cascade import Cascade, late_requests
from eval.baselines.dense import Dense
from eval.baselines.features import Features
from eval.baselines.fit import fit_baselines
from eval.baselines.history import START as HISTORY_START
from eval.baselines.history import OwnHistory
from eval.baselines.popularity import FreshPopularity, PopularitySystem
from eval.baselines.purchases import Purchases
from eval.baselines.text import TextIndex, Texts
from eval.metrics import per_query
from onesearch.corpus import TEST, VALID, Corpus, Requests, item_texts, make_split, sample_requests
from onesearch.corpus.sources import prepare
from onesearch.embed import load_text_encoder


class Parts:
    """The systems over a corpus, untuned."""

    def __init__(self, corpus):
        self.corpus = corpus
        self.fresh, self.purchases = FreshPopularity(corpus), Purchases(corpus)
        self.texts = Texts.of(item_texts(corpus))
        self.bm25 = BM25(TextIndex(self.texts), self.texts, self.fresh, dict(BM25_START))
        self.dense = Dense(self.texts, self.fresh, load_text_encoder("wordllama"))
        self.history = OwnHistory(corpus, self.bm25, self.texts, self.fresh, self.purchases, dict(HISTORY_START))
        taste = np.random.default_rng(0).standard_normal((len(corpus.items), 3), np.float32)
        self.features = Features(
            corpus, self.texts, self.bm25, self.dense, self.history, self.fresh, self.purchases, taste
        )


@pytest.fixture(scope="module")
def shop(quantized_run):
    corpus = Corpus.load(quantized_run / "corpus")
    split = make_split(corpus)
    return Parts(corpus), split, sample_requests(corpus, split, TEST, 40, 0)


@pytest.fixture(scope="module")
def fitted(shop):
    parts, split, _ = shop
    valid = sample_requests(parts.corpus, split, VALID, 40, 0)
    encoder = load_text_encoder("wordllama")
    return fit_baselines(parts.corpus, split, valid, encoder, train_requests=200)


def test_every_system_ranks_the_catalogue_without_repeats(shop, fitted):
    parts, _, requests = shop
    count = len(parts.corpus.items)
    assert [system.name for system in fitted] == ["popularity", "bm25", "dense", "own history", "cascade"]
    for system in fitted:
        items, scores = system.rank(requests, count + 3)
        assert items.shape == scores.shape == (len(requests), count + 3)
        assert items.dtype == np.int32
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(np.sort(items[:, :count], axis=1), np.tile(np.arange(count), (len(items), 1)))
        assert (items[:, count:] == -1).all()
        assert (np.diff(scores[:, :count], axis=1) <= 0).all()
        few, _ = system.rank(requests, 5)
        np.testing.assert_array_equal(few, items[:, :5])


def test_given_items_get_the_scores_that_rank_the_catalogue(shop, fitted):
    _, _, requests = shop
    for system in fitted:
        items, scores = system.rank(requests, 60)
        mixed = np.random.default_rng(0).permuted(np.arange(60))
        found = system.score(requests, items[:, mixed])
        there = items[:, mixed] >= 0
        np.testing.assert_allclose(found[there], scores[:, mixed][there], atol=1e-6, err_msg=system.name)


def test_text_helps_and_history_helps_more(shop, fitted):
    _, _, requests = shop
    found = {s.name: per_query(s.rank(requests, 10)[0], requests.target)["mrr@10"].mean() for s in fitted}
    assert found["popularity"] < found["bm25"] < found["own history"]
    assert found["popularity"] < found["dense"]
    assert found["cascade"] > found["bm25"]


def test_the_ranker_is_the_same_for_the_same_seed(shop):
    parts, split, requests = shop
    valid = sample_requests(parts.corpus, split, VALID, 40, 0)
    late = late_requests(parts.corpus, split, 100, 0)
    ranked = []
    for _ in range(2):
        cascade = Cascade(parts.texts, parts.bm25, parts.dense, parts.fresh, parts.features)
        cascade.train_ranker(late, valid, sampled=10, seed=1)
        ranked.append(cascade.rank(requests, 10))
    np.testing.assert_array_equal(ranked[0][0], ranked[1][0])
    np.testing.assert_array_equal(ranked[0][1], ranked[1][1])


def test_own_history_is_exact_over_the_whole_catalogue(shop):
    parts, _, requests = shop
    count = len(parts.corpus.items)
    own = parts.purchases.before(requests)
    row, item = np.divmod(np.arange(len(requests) * count), count)
    scores = parts.history.score_pairs(requests, row, item, own).reshape(-1, count)
    items, found = parts.history.rank(requests, 7)
    np.testing.assert_allclose(found, -np.sort(-scores, axis=1)[:, :7], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(scores, items, axis=1), found, rtol=1e-5)


def test_targets_are_ranked_where_the_tuning_thinks_they_are(shop):
    parts, _, requests = shop
    items, _ = parts.bm25.rank(requests, len(parts.corpus.items))
    place = (items == requests.target[:, None]).argmax(axis=1)
    better, ties = parts.bm25.ranking.ranks_of_targets(requests)
    assert ((better <= place) & (place <= better + ties)).all()


def test_late_requests_are_late_training_ones(shop):
    parts, split, _ = shop
    late = late_requests(parts.corpus, split, 50, 0)
    assert 0 < len(late) <= 50
    assert (split[late.event] == 0).all()
    training = parts.corpus.time[split == 0]
    assert late.time.min() >= np.quantile(training, 0.85)


def test_nothing_later_than_the_request_is_seen(shop, tmp_path):
    """Rewriting everything from the first of the requests' sessions on changes no answer and no feature."""
    parts, _, requests = shop
    corpus = parts.corpus
    first = int(corpus.time[requests.history_end].min())
    at_first = np.flatnonzero(corpus.time[requests.history_end] == first)
    request = Requests.of(corpus, requests.event[at_first])
    with (tmp_path / "items.jsonl").open("w") as handle:
        for one in corpus.items.iter_rows(named=True):
            handle.write(json.dumps({name: one[name] for name in ("item_id", "title", "brand", "price")}) + "\n")
    ids, users = corpus.items["item_id"].to_list(), corpus.users["user_id"].to_list()
    with (tmp_path / "events.jsonl").open("w") as handle:
        for e in range(len(corpus.user)):
            item = corpus.item[e] if corpus.time[e] < first else (corpus.item[e] + 1) % len(ids)
            event = {
                "user_id": users[corpus.user[e]],
                "item_id": ids[item],
                "timestamp": int(corpus.time[e]),
                "event": "purchase",
                "query": corpus.queries[corpus.query[e]],
                "session_id": str(corpus.session[e]),
            }
            handle.write(json.dumps(event) + "\n")
    other = Parts(prepare("jsonl", tmp_path / "corpus", path=tmp_path))
    again = Requests.of(other.corpus, request.event)
    assert again.query == request.query
    assert (again.target != request.target).all()
    for mine, theirs in zip(
        (parts.bm25, parts.dense, parts.history), (other.bm25, other.dense, other.history), strict=True
    ):
        np.testing.assert_array_equal(mine.rank(request, 10)[0], theirs.rank(again, 10)[0])
    items, scores = parts.bm25.rank(request, len(ids))
    before, after = parts.features(request, items, scores), other.features(again, items, scores)
    assert set(before) == set(after)
    for name in before:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-5, err_msg=name)


def test_popularity_of_the_time_of_the_request(shop):
    parts, _, requests = shop
    system = PopularitySystem(parts.fresh, 14.0)
    items, _ = system.rank(requests, 1)
    snapshots, _ = parts.fresh.table(14.0)
    best = snapshots.counts[snapshots.at(requests.time)].max(axis=1)
    np.testing.assert_array_equal(snapshots.counts[snapshots.at(requests.time), items[:, 0]], best)
