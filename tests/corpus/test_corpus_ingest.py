"""A log that passes in blocks and buckets is the log that would have been sorted in memory, to the byte."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onesearch.corpus import Corpus, ingest, jsonl, rows, tables
from onesearch.corpus.schema import EVENTS
from onesearch.corpus.sources import prepare
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

Rows = list[dict[str, Any]]
Write = Callable[[dict[str, Rows]], Path]


def made_up_log(count: int = 400) -> Rows:
    """Few users, moments and sessions, so that there are many ties; one user has a third of all events."""
    rng = np.random.default_rng(3)
    kinds = ("impression", "click", "purchase")
    return [
        {
            "user_id": "many" if rng.random() < 0.3 else f"u{rng.integers(12)}",
            "item_id": "abc"[rng.integers(3)],
            "timestamp": int(rng.integers(6)),
            "event": kinds[rng.integers(3)],
            "session_id": [None, "s", "t", "a session"][rng.integers(4)],
            "query": [None, " shoe", "hat", "red hat", f"hat {n}"][rng.integers(5)],
            "rank": n,
        }
        for n in range(count)
    ]


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "BLOCK", 17)
    monkeypatch.setattr(ingest, "BUCKET", 4_000)  # about 25 events
    monkeypatch.setattr(ingest, "GROUP", 1_000)
    monkeypatch.setattr(rows, "BLOCK", 13)
    monkeypatch.setattr(jsonl, "CHUNK", 11)
    monkeypatch.setattr(tables, "HELD", 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def in_memory(log: Rows, path: Path) -> None:
    """The events sorted at once."""
    schema = {name: EVENTS[name] for name in log[0]}
    events = pl.DataFrame(log, schema=schema).with_columns(pl.col("query").str.strip_chars())
    events = events.with_columns(pl.lit(None, kind).alias(name) for name, kind in EVENTS.items() if name not in log[0])
    events = events.sort("user_id", "timestamp", "session_id", maintain_order=True)
    events.select(*EVENTS).write_parquet(path)


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_the_result_does_not_depend_on_blocks(
    good: dict[str, Rows], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    good["events"] = made_up_log()
    good["users"] = [{"user_id": "a silent user"}, {"user_id": "u3", "attributes": [{"name": "age", "value": "9"}]}]
    path = write(good)
    if source == "parquet":
        for table, schema in (("items", None), ("users", None), ("events", {n: EVENTS[n] for n in good["events"][0]})):
            pl.DataFrame(good[table], schema=schema).write_parquet(path / f"{table}.parquet")
    whole = prepare(source, tmp_path / "whole", path=path)
    in_memory(good["events"], tmp_path / "expected.parquet")
    assert (whole.folder / "events.parquet").read_bytes() == (tmp_path / "expected.parquet").read_bytes()
    small_blocks(monkeypatch)
    seen: list[int] = []
    buckets: list[int] = []
    sort = ingest.in_order
    monkeypatch.setattr(ingest, "in_order", lambda events, *rest: buckets.append(len(events)) or sort(events, *rest))
    pieces = prepare(source, tmp_path / "pieces", path=path, progress=lambda done, total: seen.append(done))
    assert contents(pieces.folder) == contents(whole.folder)
    assert len(buckets) > 5
    assert sum(buckets) == 400
    assert seen == sorted(seen)
    assert seen[-1] == ingest.TOTAL
    assert len(set(seen)) > 20


def test_rejects_are_complete_and_in_one_order(
    good: dict[str, Rows], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good["events"] = made_up_log()
    for row in range(0, 400, 7):
        change = [("item_id", "zz"), ("event", "stare"), ("user_id", " "), ("timestamp", None)][row % 4]
        good["events"][row][change[0]] = change[1]
    path = write(good)
    whole = prepare("jsonl", tmp_path / "whole", path=path, on_error="skip")
    small_blocks(monkeypatch)
    pieces = prepare("jsonl", tmp_path / "pieces", path=path, on_error="skip")
    assert contents(pieces.folder) == contents(whole.folder)
    found = [json.loads(line) for line in (pieces.folder / "rejects.jsonl").read_text().splitlines()]
    assert sorted(one["row"] for one in found) == [row + 1 for row in range(0, 400, 7)]
    assert pieces.info["rejects"] == len(found) == 58
    assert len(pieces.item) == 400 - 58


def test_a_first_timestamp_in_the_last_block(
    good: dict[str, Rows], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a log has a clock is known when all of it is read; nothing is decided before."""
    good["events"] = [{**row, "position": n, "timestamp": None} for n, row in enumerate(made_up_log(60))]
    small_blocks(monkeypatch)
    assert not prepare("jsonl", tmp_path / "corpus", path=write(good)).has_clock
    good["events"].append({**good["events"][0], "timestamp": 5})
    with pytest.raises(UserError, match="row 1 column timestamp: no timestamp"):
        prepare("jsonl", tmp_path / "other", path=write(good))
    late = prepare("jsonl", tmp_path / "late", path=write(good), on_error="skip")
    assert late.has_clock
    assert (len(late.item), late.info["rejects"]) == (1, 60)


@pytest.mark.parametrize("moment", [1, ingest.READ + 1, ingest.CHECKED + 1])
def test_an_interruption_leaves_nothing(
    good: dict[str, Rows], write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    good["events"] = made_up_log()
    path = write(good)
    small_blocks(monkeypatch)

    def interrupt(done: int, total: int) -> None:
        if done >= moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("jsonl", tmp_path / "corpus", path=path, progress=interrupt)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_the_log_is_read_through_memory_maps(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    corpus = prepare("jsonl", tmp_path / "corpus", path=write(good))
    for array in (corpus.user, corpus.item, corpus.time, corpus.history_end, corpus.next_same, corpus.query):
        assert isinstance(array.base, np.memmap)
        assert not array.flags.writeable


def test_damaged_arrays(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    folder = prepare("jsonl", tmp_path / "corpus", path=write(good)).folder
    info = read_json(folder / "corpus.json")
    write_json(folder / "corpus.json", {**info, "arrays": {**info["arrays"], "item": info["arrays"]["offsets"]}})
    with pytest.raises(UserError, match=r"item.npy: not the array that corpus.json describes: 'int32 \[3\]'.*prepare"):
        Corpus.load(folder)
    write_json(folder / "corpus.json", info)
    (folder / "arrays/time.npy").write_bytes((folder / "arrays/time.npy").read_bytes()[:-1])
    with pytest.raises(UserError, match=r"time.npy: incomplete corpus: .* \(run `onesearch prepare` again\)"):
        Corpus.load(folder)


def test_spans_are_whole_users(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    good["events"] = made_up_log()
    corpus = prepare("jsonl", tmp_path / "corpus", path=write(good))
    for most in (1, 30, 200, 1000):
        spans = list(corpus.spans(most))
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == 400
        for span in spans:
            users = np.unique(corpus.user[span])
            assert span == slice(corpus.offsets[users[0]], corpus.offsets[users[-1] + 1])
            assert span.stop - span.start <= most or len(users) == 1
