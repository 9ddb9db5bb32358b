"""Histories, links between events of one item, splits and popularity, each against a plain reference."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.corpus import (
    TEST,
    TRAIN,
    VALID,
    Corpus,
    Requests,
    leave_one_out,
    popularity,
    sample_requests,
    time_split,
    write_corpus,
)
from onesearch.corpus.schema import EVENT_KINDS, SCHEMA_VERSION
from onesearch.corpus.tables import FILE, ROW, Tables
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

ITEMS = "abcd"
EVENT = st.tuples(
    st.sampled_from("uvw"),
    st.sampled_from(ITEMS),
    st.integers(0, 12),
    st.sampled_from(EVENT_KINDS),
    st.sampled_from([None, None, "s", "t"]),
)
LOGS = st.lists(EVENT, max_size=40)


def corpus_of(rows: list[tuple[str, str, int, str, str | None]], clock: bool = True) -> Corpus:
    """A corpus written and read; the query tells the place in `rows`."""
    columns = ("user_id", "item_id", "timestamp" if clock else "position", "event", "session_id")
    types = (pl.String, pl.String, pl.Int64, pl.String, pl.String)
    events = pl.DataFrame(rows, schema=dict(zip(columns, types, strict=True)), orient="row").with_columns(
        query=pl.format("q{}", pl.int_range(pl.len()))
    )
    items = pl.DataFrame({"item_id": list(ITEMS), "title": list(ITEMS)})
    located = [frame.with_columns(pl.lit("f").alias(FILE), pl.lit(1).alias(ROW)) for frame in (items, events)]
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder) / "corpus", Tables(items=located[0], events=located[1]), source="test")
        return Corpus.load(Path(folder) / "corpus")


@settings(max_examples=40, deadline=None)
@given(LOGS, st.booleans())
def test_arrays_against_plain_python(rows: list[tuple[str, str, int, str, str | None]], clock: bool) -> None:
    corpus = corpus_of(rows, clock)
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2], rows[i][4] or "", i))
    users = sorted({row[0] for row in rows})
    assert corpus.users["user_id"].to_list() == users
    assert [corpus.queries[q] for q in corpus.query] == [f"q{i}" for i in order]
    log = [rows[i] for i in order]
    assert [(users[u], ITEMS[i], int(t), EVENT_KINDS[k]) for u, i, t, k in _events(corpus)] == [row[:4] for row in log]
    for e, (user, item, time, _, session) in enumerate(log):
        together = [
            i
            for i, other in enumerate(log)
            if other[0] == user and other[4] == session and (session is not None or other[2] == time)
        ]
        assert corpus.history_end[e] == min(together)
        later = [i for i in range(e + 1, len(log)) if log[i][:2] == (user, item)]
        assert corpus.next_same[e] == (later[0] if later else len(log))
        assert corpus.nth_same[e] == sum(log[i][:2] == (user, item) for i in range(e))
        assert corpus.offsets[corpus.user[e]] == min(i for i, other in enumerate(log) if other[0] == user)
    requests = Requests.of(corpus, np.arange(len(log)))
    assert requests.query == [f"q{i}" for i in order]
    for start, end, user in zip(requests.history_start, requests.history_end, requests.user, strict=True):
        assert (corpus.user[start:end] == user).all()


def _events(corpus: Corpus) -> list[tuple[int, int, int, int]]:
    return list(zip(corpus.user, corpus.item, corpus.time, corpus.kind, strict=True))


@settings(max_examples=40, deadline=None)
@given(LOGS.filter(bool), st.booleans())
def test_no_session_is_on_two_sides(rows: list[tuple[str, str, int, str, str | None]], clock: bool) -> None:
    corpus = corpus_of(rows, clock)
    splits = [leave_one_out(corpus)]
    if clock:
        splits.append(time_split(corpus, 0.2, 0.2))
    for split in splits:
        for end in np.unique(corpus.history_end):
            assert len(set(split[corpus.history_end == end])) == 1


def test_time_split_by_hand() -> None:
    corpus = corpus_of(
        [("u", "a", t, "purchase", None) for t in range(8)] + [("v", "a", t, "purchase", "s") for t in (2, 9)]
    )
    split = time_split(corpus, valid=0.2, test=0.2)
    assert split.tolist() == [TRAIN] * 5 + [VALID, VALID, TEST] + [TRAIN, TRAIN]  # v's session began at 2
    assert corpus.time[split == TRAIN].max() == 9
    with pytest.raises(UserError, match="shares must be positive"):
        time_split(corpus, 0.6, 0.4)
    with pytest.raises(UserError, match="use --split leave-one-out"):
        time_split(corpus_of([("u", "a", 1, "click", None)], clock=False))


def test_leave_one_out_by_hand() -> None:
    rows = [("u", "a", t, "purchase", None) for t in range(4)]
    rows += [("v", "b", t, "purchase", None) for t in range(2)]  # too short
    sessions = [
        ("w", "c", 0, "click", "p"),
        ("w", "c", 1, "click", "q"),
        ("w", "d", 2, "click", "q"),
        ("w", "a", 3, "click", "r"),
    ]
    split = leave_one_out(corpus_of([*rows, *sessions], clock=False))
    assert split.tolist() == [TRAIN, TRAIN, VALID, TEST, TRAIN, TRAIN, TRAIN, VALID, VALID, TEST]


def test_requests_are_sampled_from_the_strongest_kind() -> None:
    rows = [("u", "a", t, "purchase" if t % 2 else "click", None) for t in range(40)]
    corpus = corpus_of(rows)
    split = time_split(corpus, 0.2, 0.2)
    requests = sample_requests(corpus, split, TRAIN, 5, seed=1)
    assert len(requests) == 5
    assert (corpus.kind[requests.event] == EVENT_KINDS.index("purchase")).all()
    assert (np.diff(requests.event) > 0).all()
    assert (split[requests.event] == TRAIN).all()
    assert sample_requests(corpus, split, TRAIN, 5, seed=1).event.tolist() == requests.event.tolist()
    assert len(sample_requests(corpus, split, TEST, 100, seed=1)) == 4


@settings(max_examples=40, deadline=None)
@given(LOGS.filter(bool), st.integers(1, 6), st.floats(0.5, 20))
def test_popularity_never_sees_the_future(
    rows: list[tuple[str, str, int, str, str | None]], every: int, half_life: float
) -> None:
    corpus = corpus_of(rows)
    found = popularity(corpus, half_life, every=every)
    first = min(row[2] for row in rows)
    for moment in range(first, first + 14):
        snapshot = int(found.at(np.array([moment]))[0])
        start = int(found.starts[snapshot])
        assert start <= moment
        expected = [0.0] * len(ITEMS)
        for _, item, time, kind, _ in rows:
            if kind != "impression" and time < start:
                expected[ITEMS.index(item)] += 0.5 ** ((start - time) / half_life)
        assert found.counts[snapshot] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_splits_and_popularity_are_the_same_however_the_log_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    rows = [("uvw"[rng.integers(3)], ITEMS[rng.integers(4)], int(t), "click", None) for t in rng.integers(0, 40, 90)]
    corpus = corpus_of(rows)
    split, counts = time_split(corpus, 0.2, 0.2), popularity(corpus, half_life=5.0, every=4).counts
    spans = Corpus.spans
    monkeypatch.setattr(Corpus, "spans", lambda self: spans(self, most=1))
    assert len(list(corpus.spans())) == 3
    np.testing.assert_array_equal(time_split(corpus, 0.2, 0.2), split)
    np.testing.assert_array_equal(popularity(corpus, half_life=5.0, every=4).counts, counts)


def test_popularity_without_a_clock_counts_training_events() -> None:
    rows = [("u", "abcd"[t], t, "purchase", None) for t in range(4)] + [("v", "a", 0, "impression", None)]
    found = popularity(corpus_of(rows, clock=False), half_life=1.0)
    assert found.counts.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_an_incomplete_or_foreign_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"corpus.json: no such file"):
        Corpus.load(tmp_path)
    write_json(tmp_path / "corpus.json", {"schema_version": SCHEMA_VERSION})
    with pytest.raises(UserError, match=r"incomplete corpus.*run `onesearch prepare` again"):
        Corpus.load(tmp_path)
    write_json(tmp_path / "corpus.json", {**read_json(tmp_path / "corpus.json"), "schema_version": 99})
    with pytest.raises(UserError, match="corpus of another schema version: 99"):
        Corpus.load(tmp_path)


def test_an_unreadable_parquet_file(tmp_path: Path) -> None:
    write_json(tmp_path / "corpus.json", {"schema_version": SCHEMA_VERSION})
    (tmp_path / "items.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match="incomplete corpus"):
        Corpus.load(tmp_path)
