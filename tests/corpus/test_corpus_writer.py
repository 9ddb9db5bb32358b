"""What is written: the whole schema, sorted events, every rejected row, and never half a corpus."""

import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onesearch.corpus import item_texts
from onesearch.corpus.arrays import VOCABULARIES
from onesearch.corpus.schema import SCHEMA_VERSION, TABLES
from onesearch.corpus.sources import prepare
from onesearch.corpus.tables import FILE, ROW, Rejects, Tables
from onesearch.corpus.writer import write_corpus
from onesearch.errors import UserError

Rows = list[dict[str, Any]]
Write = Callable[[dict[str, Rows]], Path]


def test_events_are_sorted_and_everything_arrives(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    corpus = prepare("jsonl", tmp_path / "corpus", path=write(good))
    assert corpus.users["user_id"].to_list() == ["u1", "u2"]  # no user table was given
    assert corpus.items["item_id"].to_list() == ["a", "b", "c"]
    assert [corpus.items["item_id"][int(i)] for i in corpus.item] == ["a", "b", "c"]
    assert corpus.time.tolist() == [100, 200, 50]
    assert corpus.has_clock
    assert corpus.items["price"].to_list() == [10.0, None, None]
    assert corpus.items["categories"][0].to_list() == ["shoes", "red"]
    assert corpus.items["attributes"][2].to_list() == [{"name": "size", "value": "m"}]
    for table, schema in TABLES.items():
        assert dict(pl.read_parquet_schema(corpus.folder / f"{table}.parquet")) == schema
    checksum = corpus.info.pop("checksum")
    assert len(checksum) == 64
    arrays = corpus.info.pop("arrays")
    for name, about in arrays.items():
        path = corpus.folder / "arrays" / f"{name}{'.parquet' if name in VOCABULARIES.values() else '.npy'}"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == about["checksum"]
    assert (arrays["item"]["dtype"], arrays["item"]["shape"], arrays["offsets"]["shape"]) == ("int32", [3], [3])
    assert corpus.info == {
        "schema_version": SCHEMA_VERSION,
        "source": "jsonl",
        "clock": True,
        "items": 3,
        "users": 2,
        "events": 3,
        "queries": 2,
        "places": 0,
        "devices": 0,
        "relevance": 0,
        "offers": 0,
        "rejects": 0,
    }


def test_same_rows_give_the_same_bytes(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    first, second = (prepare("jsonl", tmp_path / name, path=source) for name in ("one", "two"))
    assert first.info["checksum"] == second.info["checksum"]
    good["items"][0]["title"] = "Red shoes"
    third = prepare("jsonl", tmp_path / "three", path=write(good))
    assert third.info["checksum"] != first.info["checksum"]


def test_skipping_keeps_the_good_rows_and_lists_the_others(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    good["events"].insert(1, {"user_id": "u1", "item_id": "zz", "timestamp": 1, "event": "click"})
    good["events"].append({"user_id": "u1", "item_id": "a", "timestamp": "noon", "event": "click"})
    good["items"].append({"item_id": "a", "title": 'Again, "quoted"'})
    source = write(good)
    with (source / "events.jsonl").open("a", encoding="utf-8") as handle:
        handle.write('{"user_id": broken\n')
    corpus = prepare("jsonl", tmp_path / "corpus", path=source, on_error="skip")
    assert len(corpus.user) == 3
    assert len(corpus.items) == 3
    rejects = [json.loads(line) for line in (corpus.folder / "rejects.jsonl").read_text().splitlines()]
    found = {(Path(r["file"]).name, r["row"], r["column"], r["value"], r["reason"]) for r in rejects}
    assert found == {
        ("events.jsonl", 2, "item_id", "zz", "unknown item"),
        ("events.jsonl", 5, "timestamp", "noon", "not a whole number"),
        ("events.jsonl", 6, None, '{"user_id": broken', "not a JSON object"),
        ("items.jsonl", 4, "item_id", "a", "duplicate item_id"),
    }
    assert corpus.info["rejects"] == 4
    assert next(r for r in rejects if r["row"] == 4)["record"]["title"] == 'Again, "quoted"'


def test_columns_without_a_place_are_reported_once(
    good: dict[str, Rows], write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good["items"][2]["weight"] = 3  # only in the last row
    with caplog.at_level(logging.WARNING):
        prepare("jsonl", tmp_path / "corpus", path=write(good))
    assert [message for message in caplog.messages if message.endswith("left out: weight")] == caplog.messages


def test_a_byte_order_mark_is_no_mistake(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    (source / "items.jsonl").write_bytes(b"\xef\xbb\xbf" + (source / "items.jsonl").read_bytes())
    assert len(prepare("jsonl", tmp_path / "corpus", path=source).items) == 3


def test_a_slice_has_the_first_users_and_all_items(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    corpus = prepare("jsonl", tmp_path / "corpus", path=write(good), users=1)
    assert corpus.users["user_id"].to_list() == ["u1"]
    assert len(corpus.user) == 2
    assert len(corpus.items) == 3


def test_a_folder_with_other_things_is_not_replaced(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    source = write(good)
    with pytest.raises(UserError, match="something else is there"):
        prepare("jsonl", source, path=source)
    assert (source / "items.jsonl").exists()
    folder = prepare("jsonl", tmp_path / "corpus", path=source).folder
    prepare("jsonl", folder, path=source, users=1)  # a corpus is replaced
    assert len(pl.read_parquet(folder / "users.parquet")) == 1


def test_a_failed_write_keeps_the_old_corpus(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    folder = prepare("jsonl", tmp_path / "corpus", path=write(good)).folder
    before = sorted((one.name, one.stat().st_mtime_ns) for one in folder.iterdir())
    good["items"][1]["title"] = ""
    with pytest.raises(UserError):
        prepare("jsonl", folder, path=write(good))
    assert sorted((one.name, one.stat().st_mtime_ns) for one in folder.iterdir()) == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["corpus", "source"]


FULL = """
import resource, signal, sys
from pathlib import Path
from onesearch.corpus.sources import prepare
from onesearch.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    prepare("jsonl", Path(sys.argv[2]), path=Path(sys.argv[1]))
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_a_disk_that_fills_leaves_nothing(good: dict[str, Rows], write: Write, tmp_path: Path) -> None:
    """The system refuses to let a file grow, in the middle of writing the items."""
    good["items"] += [{"item_id": f"i{i}", "title": f"title {i * 7919 % 10007} {i}"} for i in range(20_000)]
    source = write(good)
    command = [sys.executable, "-c", FULL, str(source), str(tmp_path / "corpus")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert "the disk is full, nothing was written" in done.stdout
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_tables_need_their_columns(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a"], FILE: ["mine"], ROW: [1]})
    with pytest.raises(UserError, match="mine: missing column: 'title'"):
        write_corpus(tmp_path / "corpus", Tables(items=items), source="test")


def test_mending_keeps_an_item_without_title_and_skips_the_rest(
    good: dict[str, Rows], write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good["items"][0]["title"] = " "
    good["items"][1]["title"] = None
    good["events"].append({"user_id": "u1", "item_id": "X", "timestamp": 300, "event": "click"})
    corpus = prepare("jsonl", tmp_path / "corpus", path=write(good), on_error="mend")
    assert corpus.items["title"].to_list() == ["a", "b", "Green hat"]
    assert item_texts(corpus) == ["shoes red", "", "Green hat"], "an id says nothing"
    assert "2 items have no title and are called by their id, such as a" in caplog.text
    (rejected,) = (tmp_path / "corpus/rejects.jsonl").read_text().splitlines()
    assert json.loads(rejected)["reason"] == "unknown item"


def test_unknown_policy() -> None:
    with pytest.raises(UserError, match="use stop, skip or mend"):
        Rejects("ignore")  # type: ignore[arg-type]
