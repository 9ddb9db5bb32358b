"""Pairs from a log: each kind is what it says, from training events only, and Swing is the sum it is defined by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from onesearch.corpus import TRAIN, Corpus, item_texts, make_split, sources
from training.align_batches import judgements, mine, text_numbers
from training.pairs import (
    KnownPairs,
    co_clicked_items,
    interactions,
    partners,
    preferences,
    query_item_pairs,
    query_query_pairs,
    together,
)
from training.semantic_negatives import SemanticNegatives
from training.swing import draw_columns, strongest, swing, swing_pairs, taken

DAY = 86_400
ALL = 10_000


@settings(max_examples=50, deadline=None, derandomize=True)
@given(groups=st.lists(st.integers(0, 5), max_size=40), seed=st.integers(0, 5))
def test_a_partner_is_another_of_the_group_and_missing_only_where_there_is_none(groups: list[int], seed: int) -> None:
    group = np.array(groups, np.int64)
    found = partners(group, np.random.default_rng(seed))
    for place, other in enumerate(found):
        assert (other == -1) == (groups.count(groups[place]) == 1)
        assert other == -1 or (other != place and group[other] == group[place])


def test_partners_are_uniform() -> None:
    group = np.zeros(4, np.int64)
    found = partners(group, np.random.default_rng(0), np.zeros(30_000, np.int64))
    np.testing.assert_allclose(np.bincount(found, minlength=4) / 30_000, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.01)


@pytest.fixture(scope="module")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two people, four items (a and d of the same text), all kinds of events; the last day is held out."""
    import json

    base = tmp_path_factory.mktemp("clicks")
    titles = {"a": "red shoe", "b": "blue shoe", "c": "green hat", "d": "red shoe"}
    rows = [  # user, day, session, query, item, what
        ("u", 0, "s0", "shoe", "a", "impression"),
        ("u", 0, "s0", "shoe", "a", "click"),
        ("u", 0, "s0", "shoe", "b", "impression"),
        ("u", 0, "s0", "shoe", "c", "purchase"),
        ("u", 1, "s1", "shoes", "d", "click"),
        ("v", 1, "s2", "shoe", "b", "click"),
        ("v", 2, "s3", None, "c", "purchase"),
        ("v", 2, "s3", None, "b", "click"),
        *[("v", 40 + n, f"t{n}", "held out", "c", "purchase") for n in range(20)],
        *[("u", 3 + n, f"u{n}", f"filler {n}", "c", "impression") for n in range(30)],
    ]
    events = [
        {"user_id": u, "item_id": i, "timestamp": 1_700_000_000 + day * DAY, "event": e, "session_id": s}
        | ({} if q is None else {"query": q})
        for u, day, s, q, i, e in rows
    ]
    judged = [("shoe", "a", 3.0), ("nobody asked", "b", 1.5), ("held out", "c", 3.0), ("shoe", "c", 0.0)]
    tables: dict[str, list[dict[str, Any]]] = {
        "items": [{"item_id": name, "title": title} for name, title in titles.items()],
        "events": events,
        "relevance": [{"query": q, "item_id": i, "grade": g} for q, i, g in judged],
    }
    (base / "log").mkdir()
    for name, table in tables.items():
        (base / "log" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    return sources.prepare("jsonl", base / "corpus", path=base / "log")


@pytest.fixture(scope="module")
def split(clicks: Corpus) -> np.ndarray:
    """All of the first 35 days are training."""
    first = int(clicks.time.min())
    return np.where(clicks.time < first + 35 * DAY, TRAIN, 2).astype(np.int8)


def texts(corpus: Corpus) -> np.ndarray:
    return text_numbers(item_texts(corpus))


def names(corpus: Corpus, items: np.ndarray) -> list[str]:
    return [corpus.items["item_id"][int(item)] for item in items]


def queries(corpus: Corpus, numbers: np.ndarray) -> list[str]:
    return [corpus.queries[int(number)] for number in numbers]


def test_pairs_of_a_log_worked_out_by_hand(clicks: Corpus, split: np.ndarray) -> None:
    events, text, random = interactions(clicks, split), texts(clicks), np.random.default_rng(0)
    assert len(events) == 6, "impressions and held-out events are no interactions"

    searched = query_item_pairs(clicks, events, ALL, random)
    assert sorted(zip(queries(clicks, searched.left), names(clicks, searched.right), strict=True)) == [
        ("shoe", "a"), ("shoe", "b"), ("shoe", "c"), ("shoes", "d")
    ]  # fmt: skip
    asked = query_query_pairs(clicks, events, text, ALL, random)
    assert sorted(zip(queries(clicks, asked.left), queries(clicks, asked.right), strict=True)) == [
        ("shoe", "shoes"), ("shoes", "shoe")
    ], "a and d have one text"  # fmt: skip
    drawn = [co_clicked_items(clicks, events, text, ALL, np.random.default_rng(seed)) for seed in range(30)]
    pairs = {pair for one in drawn for pair in zip(names(clicks, one.left), names(clicks, one.right), strict=True)}
    assert pairs == {(x, y) for x in "abc" for y in "abc" if x != y}
    taken_together = together(clicks, events, text, ALL, random)
    in_visits = set(zip(names(clicks, taken_together.left), names(clicks, taken_together.right), strict=True))
    assert in_visits == {("a", "c"), ("c", "a"), ("b", "c"), ("c", "b")}


def test_who_went_further_with_what(clicks: Corpus, split: np.ndarray) -> None:
    seen: set[tuple[str, str, str, int]] = set()
    for seed in range(30):
        found = preferences(clicks, split, ALL, np.random.default_rng(seed))
        seen |= set(
            zip(
                queries(clicks, found.query),
                names(clicks, found.better),
                names(clicks, found.worse),
                found.steps.tolist(),
                strict=True,
            )
        )
    assert seen == {("shoe", "a", "b", 1), ("shoe", "c", "b", 3), ("shoe", "c", "a", 2)}


def test_judgements_of_held_out_queries_take_no_part(clicks: Corpus, split: np.ndarray) -> None:
    found, extra = judgements(clicks, split, ALL, seed=0)
    every = [*clicks.queries, *extra]
    rows = zip([every[number] for number in found.query], names(clicks, found.item), found.grade.tolist(), strict=True)
    assert sorted(rows) == [("nobody asked", "b", 0.5), ("shoe", "a", 1.0), ("shoe", "c", 0.0)]
    assert extra == ("nobody asked",)


def test_what_the_log_knows_is_no_negative(clicks: Corpus, split: np.ndarray) -> None:
    text = texts(clicks)
    known = KnownPairs(clicks, interactions(clicks, split), text)
    shoe, shoes = clicks.queries.index("shoe"), clicks.queries.index("shoes")
    held_out = clicks.queries.index("held out")
    a, b, c, d = (text[clicks.items["item_id"].to_list().index(name)] for name in "abcd")
    assert a == d
    asked = np.array([shoe, shoes, held_out])
    np.testing.assert_array_equal(
        known.query_text(asked, np.array([a, b, c])), [[True, True, True], [True, False, False], [False] * 3]
    )
    assert known.contains(np.array([shoes, shoes]), np.array([d, c])).tolist() == [True, False]
    np.testing.assert_array_equal(
        known.query_query(asked, asked), [[True, True, False], [True, True, False], [False, False, True]]
    )
    np.testing.assert_array_equal(known.text_text(np.array([a, b]), np.array([c, a])), [[True, True], [True, True]])


def test_mined_pairs_are_of_training_events_and_the_same_for_a_seed(shop: Corpus) -> None:
    split, text = make_split(shop), texts(shop)
    weights = dict.fromkeys(
        ("query_query", "item_item", "query_item", "rank", "relevance", "decoupled", "semantic"), 1.0
    )
    one, other = (mine(shop, split, text, weights, 300, 0.5, 1000, seed=3) for _ in range(2))
    assert one.query_item is not None and other.query_item is not None
    assert one.preferences is None, "this log has purchases only"
    np.testing.assert_array_equal(one.query_item.right, other.query_item.right)
    trained = split == TRAIN
    logged = set(zip(shop.query[trained].tolist(), shop.item[trained].tolist(), strict=True))
    assert set(zip(one.query_item.left.tolist(), one.query_item.right.tolist(), strict=True)) <= logged
    assert one.item_item is not None and (text[one.item_item.left] != text[one.item_item.right]).all()


def brute_force_swing(held: np.ndarray, alpha: float) -> np.ndarray:
    users, items = held.shape
    scores = np.zeros((items, items))
    for u in range(users):
        for v in range(u):
            common = np.flatnonzero(held[u] * held[v])
            value = 1 / np.sqrt(held[u].sum() * held[v].sum()) / (alpha + len(common)) if len(common) else 0
            for i in common:
                for j in common:
                    scores[i, j] += value * (i != j)
    return scores


def random_log(seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((12, 9)) < 0.4).astype(float)


def test_swing_is_the_sum_over_pairs_of_users() -> None:
    held = random_log()
    expected = brute_force_swing(held, alpha=0.5)
    assert expected.max() > 0
    found = swing(sparse.csr_array(held), user_pairs=1000, seed=0, alpha=0.5).toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_swing_by_hand() -> None:
    held = sparse.csr_array(np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 1]]))
    scores = swing(held, user_pairs=3, seed=0, alpha=1.0)  # only the first two users share two items: 1/2 / (1 + 2)
    assert scores.toarray()[0, 1] == scores.toarray()[1, 0] == pytest.approx(1 / 6)
    assert scores.nnz == 2


def test_drawn_swing_is_right_on_average() -> None:
    held = random_log()
    expected = brute_force_swing(held, alpha=1.0)
    drawn = np.mean([swing(sparse.csr_array(held), user_pairs=60, seed=seed).toarray() for seed in range(1000)], axis=0)
    np.testing.assert_allclose(drawn, expected, atol=0.05 * expected.max())


def test_a_user_counts_with_the_latest_items(shop: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.swing.LATEST", 5)
    events = interactions(shop, make_split(shop))
    held = taken(shop, events)
    for user in range(len(shop.users)):
        mine_ = shop.item[events[shop.user[events] == user]].tolist()
        latest = list(dict.fromkeys(reversed(mine_)))[:5]
        assert set(held[[user]].indices.tolist()) == set(latest)


def test_swing_pairs_are_partners_by_score(shop: Corpus) -> None:
    events, text = interactions(shop, make_split(shop)), texts(shop)
    pairs = swing_pairs(shop, events, text, 500, user_pairs=100_000, seed=0)
    scores = swing(taken(shop, events), 100_000, 0)
    assert len(pairs) > 400
    assert (scores[pairs.left, pairs.right] > 0).all()
    assert (text[pairs.left] != text[pairs.right]).all()


def test_columns_are_drawn_in_proportion() -> None:
    weights = sparse.csr_array(np.array([[0.0, 1, 3], [0, 0, 0], [2, 0, 0]]))
    rows = np.repeat([0, 2], 20_000)
    drawn = draw_columns(weights, rows, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn[:20_000], minlength=3) / 20_000, [0, 0.25, 0.75], atol=0.01)
    assert (drawn[20_000:] == 0).all()


def test_the_strongest_of_a_row() -> None:
    scores = sparse.csr_array(np.array([[5.0, 7, 7, 0], [0, 0, 0, 1]]))
    np.testing.assert_array_equal(strongest(scores, 2).toarray(), [[0, 7, 7, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(strongest(scores, 1).toarray(), [[0, 7, 0, 0], [0, 0, 0, 1]])


def test_semantic_negatives_share_the_first_level_or_do_not() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((300, 8)).astype(np.float32)
    semantic = SemanticNegatives.fit(vectors, (5, 4), seed=0)
    np.testing.assert_allclose(semantic.nearness.sum(axis=1), 1)
    assert (np.diag(semantic.nearness) == 0).all()
    items = np.repeat(np.arange(300), 40)
    far, near = semantic.draw(items, 3, 2, random)
    codes = semantic.codes
    assert (codes[far, 0] != codes[items, 0][:, None]).all()
    here = near >= 0
    assert here.mean() > 0.9
    own = np.broadcast_to(codes[items][:, None], (*near.shape, 2))
    assert (codes[near[here], 0] == own[here, 0]).all() and (codes[near[here], 1] != own[here, 1]).all()
    # Far clusters come as often as their chance says, and their items evenly.
    first = codes[items, 0] == 0
    share = np.bincount(codes[far[first].ravel(), 0], minlength=5) / far[first].size
    np.testing.assert_allclose(share, semantic.nearness[0], atol=0.03)
    assert len(np.unique(far)) == 300


def test_one_cluster_has_no_far_negatives(tmp_path: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    far, near = SemanticNegatives.fit(vectors, (1, 1), seed=0).draw(np.arange(4), 2, 2, np.random.default_rng(0))
    assert (far == -1).all() and (near == -1).all()
