"""Lists with labels: from impressions, from what systems return, and from files."""

import json

import numpy as np
import pytest

from eval.ranked_lists import from_impressions, from_union
from eval.trec_lists import read_lists
from onesearch.corpus import TEST, Requests
from onesearch.corpus.sources import prepare
from onesearch.errors import UserError


def event(user, item, kind, time, query="shoe", session="s"):
    return {
        "user_id": user,
        "item_id": item,
        "event": kind,
        "timestamp": time,
        "query": query,
        "session_id": session,
    }


EVENTS = [
    event("u", "a", "impression", 10),
    event("u", "b", "impression", 10),
    event("u", "c", "impression", 11),
    event("u", "b", "click", 12),
    event("u", "b", "purchase", 13),
    event("u", "d", "click", 14),  # clicked, so it was shown
    event("u", "a", "impression", 15, query="hat"),
    event("u", "c", "purchase", 20, query="coat", session="t"),  # shows nothing
    event("v", "a", "impression", 30),
    event("v", "a", "click", 31),
    event("v", "c", "impression", 40, session="t"),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Two users; u searches twice in one session and v twice."""
    folder = tmp_path_factory.mktemp("shown")
    items = [{"item_id": name, "title": name} for name in "abcd"]
    for table, rows in (("items", items), ("events", EVENTS)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare("jsonl", folder / "corpus", path=folder)


def contents(lists):
    """{(user, query): {item: label}}"""
    found = {}
    for row, there in enumerate(lists.there):
        names = [lists.item_ids[item] for item in lists.items[row, there]]
        key = (int(lists.user[row]), lists.requests.query[row], int(lists.requests.time[row]))
        found[key] = dict(zip(names, lists.labels[row, there].tolist(), strict=True))
    return found


def test_a_list_is_what_one_search_showed(shown):
    lists = from_impressions(shown, np.zeros(len(shown.user), np.int8), "all", 100)
    assert contents(lists) == {
        (0, "shoe", 10): {"a": 0, "b": 1, "c": 0, "d": 1},
        (0, "hat", 15): {"a": 0},
        (1, "shoe", 30): {"a": 1},
        (1, "shoe", 40): {"c": 0},
    }
    assert lists.counts() == {
        "lists": 4,
        "users": 2,
        "pairs": 7,
        "right": 3,
        "lists_without_right": 2,
        "lists_all_right": 1,
        "right_outside": 0,
    }
    assert (lists.requests.target == -1).all(), "no scorer can look"
    by_query = dict(
        zip(lists.requests.time.tolist(), lists.requests.history_end - lists.requests.history_start, strict=True)
    )
    assert by_query == {10: 0, 15: 0, 30: 0, 40: 2}, "what came before the session"


def test_only_what_is_as_strong_as_the_label_is_right(shown):
    split = np.zeros(len(shown.user), np.int8)
    bought = from_impressions(shown, split, "all", 100, "purchase")
    assert contents(bought)[0, "shoe", 10] == {"a": 0, "b": 1, "c": 0, "d": 0}
    assert len(from_impressions(shown, split, "train", 2)) == 2


def test_a_part_without_impressions_or_labels_is_told(shown):
    split = np.zeros(len(shown.user), np.int8)
    with pytest.raises(UserError, match="no impressions: '--part test'"):
        from_impressions(shown, split, "test", 100)
    split[(shown.user == 1) & (shown.time == 40)] = TEST
    with pytest.raises(UserError, match="no list of 1 holds anything right: '--label click'"):
        from_impressions(shown, split, "test", 100)


def test_the_order_of_a_list_is_drawn(shown):
    split = np.zeros(len(shown.user), np.int8)
    orders = {tuple(from_impressions(shown, split, "all", 100, seed=seed).items[0]) for seed in range(30)}
    assert len(orders) > 10
    one, same = (from_impressions(shown, split, "all", 100, seed=3).items for _ in range(2))
    np.testing.assert_array_equal(one, same)


def test_a_union_holds_each_item_once_and_says_what_no_system_found(shown):
    requests = Requests.of(shown, np.flatnonzero(shown.kind == 3))  # b, then c
    found = {"one": np.array([[0, 1], [0, -1]], np.int32), "two": np.array([[1, 3], [3, 0]], np.int32)}
    lists = from_union(found, requests, shown)
    assert list(contents(lists).values()) == [{"a": 0, "b": 1, "d": 0}, {"a": 0, "d": 0}]
    assert [sorted(row[row >= 0].tolist()) for row in lists.items] == [[0, 1, 3], [0, 3]]
    assert lists.right.sum() == 1 and lists.items[lists.right].tolist() == [1]
    assert lists.outside.tolist() == [0, 1]
    assert lists.one_answer and (lists.requests.target == -1).all()
    with pytest.raises(UserError, match="no list of 2 holds anything right"):
        from_union({"one": np.array([[0], [0]], np.int32)}, requests, shown)


@pytest.fixture
def files(tmp_path):
    """Two runs over three queries, of which two are judged, and who asked."""
    texts = {
        "a.run": "q1 Q0 x 1 0.9 alpha\nq1 Q0 y 2 0.5 alpha\nq2 Q0 x 1 0.7 alpha\nq3 Q0 x 1 0.7 alpha\n",
        "b.run": "q1\tQ0\tz\t1\t3\tbeta\n\nq2 Q0 x 1 2e-1 beta\nq2 Q0 z 2 -1 beta\n",
        "qrels.txt": "q1 0 y 2\nq1 0 w 1\nq2 0 x 1\nq2 0 z -1\nq9 0 x 1\n",
        "users.txt": "q1 ann\nq2 ann\nq3 ben\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_files_become_lists(files):
    runs = [files / "a.run", files / "b.run"]
    lists, scores, remarks = read_lists(runs, files / "qrels.txt", files / "users.txt")
    assert lists.queries == ["q1", "q2"]
    assert lists.user.tolist() == [0, 0]
    assert lists.outside.tolist() == [1, 0], "w is in no run"
    found = {
        (query, lists.item_ids[item]): (int(label), float(alpha), float(beta))
        for query, *rows in zip(lists.queries, lists.items, lists.labels, scores["alpha"], scores["beta"], strict=True)
        for item, label, alpha, beta in zip(*rows, strict=True)
        if item >= 0
    }
    inf = float("inf")
    assert found == {
        ("q1", "x"): (0, 0.9, -inf),
        ("q1", "y"): (2, 0.5, -inf),
        ("q1", "z"): (0, -inf, 3),
        ("q2", "x"): (1, 0.7, 0.2),
        ("q2", "z"): (0, -inf, -1),
    }
    assert remarks == [
        f"1 queries of the runs are not in {files / 'qrels.txt'} and left out",
        "2 of 5 items of the lists are not judged and count as wrong",
    ]
    assert read_lists(runs, files / "qrels.txt")[0].user.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.run",
            "q1 Q0 x 1 0.9 alpha\nq1 Q0 y 2\n",
            r"a.run line 2: not a line `query Q0 item rank score system`: 'q1 Q0 y 2'",
        ),
        ("a.run", "\nq1 Q0 x 1 high alpha\n", r"a.run line 2: the score is not a number: 'high'"),
        ("a.run", "q1 Q0 x 1 nan alpha\n", r"a.run line 1: the score is not a number: 'nan'"),
        ("a.run", "q1 Q0 x 1 1 a\nq1 Q0 x 2 0 a\n", r"a.run line 2: the item occurs twice for one query"),
        ("a.run", "\n \n", r"a.run: nothing in the file"),
        ("a.run", "q1 Q0 x 1 1 beta\n", r"b.run: two runs of one name: 'beta'"),
        ("qrels.txt", "q1 0 y 1.5\n", r"qrels.txt line 1: the label is not a whole number: '1.5'"),
        ("qrels.txt", "q1 y 1\n", r"qrels.txt line 1: not a line `query 0 item label`"),
        ("qrels.txt", "q7 0 y 1\n", r"qrels.txt: no query of the runs is judged"),
        ("qrels.txt", "q1 0 y 0\n", r"qrels.txt: no list of 1 holds anything right"),
        ("users.txt", "q1 ann\n", r"users.txt: a query without a user: 'q2'"),
        ("users.txt", "q1 ann young\n", r"users.txt line 1: not a line `query user`"),
    ],
)
def test_a_broken_file_is_named_with_its_line(files, name, text, message):
    (files / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_lists([files / "a.run", files / "b.run"], files / "qrels.txt", files / "users.txt")


def test_a_missing_file_is_named(files):
    with pytest.raises(UserError, match=r"c.run: no such file"):
        read_lists([files / "c.run"], files / "qrels.txt")
