"""Every mistake in a user's files is one line that names place, value and remedy, and leaves nothing behind."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onesearch.corpus.sources import prepare
from onesearch.errors import UserError

Rows = list[dict[str, Any]]
Write = Callable[[dict[str, Rows]], Path]


def mistake(tmp_path: Path, source: Path, name: str = "jsonl") -> str:
    """The error of preparing `source`, after checking that nothing was written."""
    with pytest.raises(UserError) as caught:
        prepare(name, tmp_path / "corpus", path=source)
    assert [one.name for one in tmp_path.iterdir()] == ["source"]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("table", "row", "change", "message"),
    [
        ("events", 2, {"item_id": "X1"}, r"row 2 column item_id: unknown item: 'X1' \(add it"),
        ("items", 3, {"item_id": "a"}, r"row 3 column item_id: duplicate item_id: 'a' \(keep one"),
        ("items", 2, {"title": "  "}, r"row 2 column title: empty title: '' \(give"),
        ("items", 2, {"title": None}, r"row 2 column title: empty title \(give"),
        ("items", 1, {"item_id": None}, r"row 1 column item_id: empty item_id \(give"),
        ("items", 1, {"price": "cheap"}, r"row 1 column price: not a number: 'cheap' \(write a number"),
        ("items", 1, {"price": -1}, r"row 1 column price: no price: '-1.0'"),
        ("items", 1, {"categories": "shoes"}, r"row 1 column categories: not a list of texts: 'shoes'"),
        ("items", 1, {"attributes": {"size": "m"}}, r"column attributes: not a list of \{name, value\}: '\{\"size\""),
        ("events", 1, {"timestamp": "2017-01-01"}, r"row 1 column timestamp: not a whole number: '2017-01-01' \(write"),
        ("events", 1, {"timestamp": 1.5}, r"row 1 column timestamp: not a whole number: '1.5'"),
        ("events", 1, {"timestamp": 1_500_000_000_000}, r"not in seconds since 1970: '1500000000000' \(divide"),
        ("events", 3, {"timestamp": None}, r"row 3 column timestamp: no timestamp"),
        ("events", 1, {"event": "stare"}, r"column event: unknown kind of event: 'stare' \(use one of impression"),
        ("events", 1, {"user_id": ""}, r"row 1 column user_id: empty user_id"),
        (
            "events",
            2,
            {"query": "x" * 100_000},
            r"row 2 column query: the query is too long: 'x+… \(100,002 ",
        ),
    ],
)
def test_a_bad_row(
    good: dict[str, Rows], write: Write, tmp_path: Path, table: str, row: int, change: dict[str, Any], message: str
) -> None:
    good[table][row - 1].update(change)
    source = write(good)
    found = mistake(tmp_path, source)
    assert found.startswith(str(source / f"{table}.jsonl"))
    assert re.search(message, found), found


def test_neither_timestamp_nor_position(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    for event in good["events"]:
        del event["timestamp"]
    assert "row 1 column timestamp: neither timestamp nor position" in mistake(tmp_path, write(good))


def test_a_missing_column(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    for item in good["items"]:
        item["name"] = item.pop("title")
    found = mistake(tmp_path, write(good))
    assert "items.jsonl: missing column: 'title' (the file has: attributes, categories, item_id, name, price)" in found


def test_a_user_or_judgement_that_breaks_the_schema(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    twice = {**good, "users": [{"user_id": "u1"}, {"user_id": "u1"}]}
    assert "users.jsonl row 2 column user_id: duplicate user_id: 'u1'" in mistake(tmp_path, write(twice))
    judged = {**good, "users": [], "relevance": [{"query": "hat", "item_id": "X", "grade": 1}]}
    (tmp_path / "source" / "users.jsonl").unlink()
    del judged["users"]
    assert "relevance.jsonl row 1 column item_id: unknown item: 'X'" in mistake(tmp_path, write(judged))


def test_a_broken_line(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    lines = (source / "items.jsonl").read_text().splitlines()
    lines.insert(1, "")  # an empty line is no row, but it counts
    lines[3] = lines[3][:-4]
    (source / "items.jsonl").write_text("\n".join(lines))
    found = mistake(tmp_path, source)
    assert 'items.jsonl row 4: not a JSON object: \'{"item_id": "c"' in found


def test_an_empty_file(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    for content in ("", "\n\n"):
        (source / "events.jsonl").write_text(content)
        assert "events.jsonl: the file is empty" in mistake(tmp_path, source)


def test_a_missing_file_or_folder(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    (source / "events.jsonl").unlink()
    assert "events.jsonl: no such file" in mistake(tmp_path, source)
    assert "elsewhere: no such folder" in mistake(tmp_path, tmp_path / "elsewhere")
    assert "items.parquet: no such file" in mistake(tmp_path, source, "parquet")


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_truncated_gzip(good: dict[str, Rows], write: Write, tmp_path: Path, on_error: Any) -> None:
    """Damage is no bad row: it stops the work either way, since nobody knows what is missing."""
    source = write(good)
    text = (source / "events.jsonl").read_bytes()
    (source / "events.jsonl").unlink()
    whole = gzip.compress(text * 500)
    (source / "events.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"events.jsonl.gz: damaged gzip after row [1-9]\d*.*download it again"):
        prepare("jsonl", tmp_path / "corpus", path=source, on_error=on_error)
    (source / "events.jsonl.gz").write_bytes(b"not a gzip")
    assert "damaged gzip after row 0" in mistake(tmp_path, source)


def test_the_same_table_twice(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    (source / "items.jsonl.gz").write_bytes(gzip.compress((source / "items.jsonl").read_bytes()))
    assert "the same table twice: 'items.jsonl and items.jsonl.gz'" in mistake(tmp_path, source)


def test_bad_parquet(good: dict[str, Rows], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    pl.DataFrame(good["items"]).write_parquet(source / "items.parquet")
    events = pl.DataFrame(good["events"])
    events.with_columns(pl.col("timestamp").cast(pl.String)).write_parquet(source / "events.parquet")
    assert "events.parquet row 1 column timestamp: not a whole number: '50'" in mistake(tmp_path, source, "parquet")
    events.drop("item_id").write_parquet(source / "events.parquet")
    assert "events.parquet: missing column: 'item_id'" in mistake(tmp_path, source, "parquet")
    whole = (source / "items.parquet").read_bytes()
    (source / "items.parquet").write_bytes(whole[: len(whole) // 2])
    assert "items.parquet: not a readable Parquet file" in mistake(tmp_path, source, "parquet")


def test_an_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown source: 'csv' \(use one of completejourney, jsonl"):
        prepare("csv", tmp_path / "corpus")
    with pytest.raises(UserError, match="give --path"):
        prepare("jsonl", tmp_path / "corpus")
