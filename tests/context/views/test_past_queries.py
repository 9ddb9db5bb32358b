"""Past queries: which, how old, which tokens."""

import numpy as np
from view_logs import DAY, MakeLog

from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views.queries import PastQueries
from onesearch.corpus import Requests

TEXTS = ("oat flakes", "ground coffee", "dish soap", "tea")


def test_the_last_queries_before_the_session_latest_first(make_log: MakeLog) -> None:
    said = ["tea", "tea", None, "dish soap", "tea", "oat flakes", "ground coffee"]
    sessions = ["a", "a", "b", "c", "d", "e", "e"]
    corpus = make_log(
        [(0, n, "click", n * DAY, query, sessions[n]) for n, query in enumerate(said)]
        + [(1, 0, "click", 3 * DAY, "oat flakes", "x"), (1, 0, "click", 9 * DAY, "tea", "y")]
    )
    tokenizer = QueryTokenizer.train(TEXTS)
    view = PastQueries(corpus, tokenizer, 2, 32)
    requests = Requests.of(corpus, np.array([0, 6, 8]))
    event = view.latest(requests)
    assert event.tolist() == [[-1, -1], [4, 3], [7, -1]], "the same query again is one search; never its own session"
    arrays = view.read(requests, event)
    ids, weights, age = (arrays[f"past_query_{name}"] for name in ("ids", "weights", "age"))
    np.testing.assert_allclose(weights.sum(-1), [[0, 0], [1, 1], [1, 0]], atol=1e-6)
    np.testing.assert_allclose(age, np.log1p([[0, 0], [2, 3], [6, 0]]) / 4, atol=1e-6)
    expected, _ = tokenizer.encode(["dish soap"], 32)
    np.testing.assert_array_equal(ids[1, 1][weights[1, 1] > 0], expected)


def test_only_as_many_columns_as_are_used(make_log: MakeLog) -> None:
    corpus = make_log([(0, 0, "click", n * DAY, TEXTS[n % 4], None) for n in range(9)])
    view = PastQueries(corpus, QueryTokenizer.train(TEXTS), 8, 32)
    requests = Requests.of(corpus, np.array([0, 3]))
    assert view.read(requests, view.latest(requests))["past_query_ids"].shape[:2] == (2, 3)
    first = requests.part(slice(0, 1))
    arrays = view.read(first, view.latest(first))
    assert arrays["past_query_ids"].shape == (1, 1, 1) and not arrays["past_query_weights"].any()
