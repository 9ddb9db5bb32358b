"""KuaiSearch: impressions, clicks, purchases, queries and judgements all arrive, from the published sample."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from published import write_lines

from onesearch.corpus.sources import prepare
from onesearch.errors import UserError


@pytest.fixture(scope="module")
def kuai(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published sample, with a made-up row for every item that its 200 item rows lack."""
    folder = tmp_path_factory.mktemp("kuai")
    sample = shared_data / "kuaisearch-demo"
    for name in ("users", "recall", "rank", "relevance"):
        (folder / f"{name}.jsonl").write_bytes((sample / f"{name}.jsonl").read_bytes())
    items = [json.loads(line) for line in (sample / "items.jsonl").read_text(encoding="utf-8").splitlines()]
    used: set[int] = set()
    for name in ("recall", "rank"):
        for line in (sample / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            for key, value in json.loads(line).items():
                used |= set(value) if key.endswith("item_ids") else {value} if key == "target_item_id" else set()
    missing = sorted(used - {item["item_id"] for item in items})
    made_up = [{**items[0], "item_id": one, "item_title": f"item {one}"} for one in missing]
    write_lines(folder / "items_lite.jsonl", items + made_up)
    return folder


def test_kuaisearch_arrives_whole(kuai: Path, shared_data: Path, tmp_path: Path) -> None:
    corpus = prepare("kuaisearch", tmp_path / "corpus", path=kuai)
    raw = pl.read_ndjson(kuai / "recall.jsonl")
    counts = np.bincount(corpus.kind, minlength=4)
    before = int((corpus.query < 0).sum())  # what the first rank row of two users tells about the time before
    assert before == 80
    assert counts[0] == raw["impressed_item_ids"].list.len().sum()  # all of the rank file is in the recall file
    assert (
        counts[1] + counts[3]
        == raw["clicked_item_ids"].list.len().sum() + raw["purchased_item_ids"].list.len().sum() + before
    )
    assert set(corpus.queries) == set(raw["query"])
    assert not corpus.has_clock
    assert corpus.info["rejects"] == 0
    assert len(corpus.relevance) == 200
    assert corpus.relevance["grade"].value_counts().sort("grade").rows() == [(0.0, 17), (1.0, 40), (2.0, 76), (3.0, 67)]
    assert corpus.items["item_id"].str.starts_with("relevance-").sum() == 200
    user = corpus.users.row(by_predicate=pl.col("user_id") == "33407", named=True)
    assert {"name": "gender", "value": "M"} in user["attributes"]
    first = corpus.items.row(by_predicate=pl.col("item_id") == "3359347", named=True)
    assert first["brand"] == "金粟兰"
    assert first["categories"] == ["女装", "皮草"]  # UNKNOWN is left out
    assert corpus.items.row(by_predicate=pl.col("item_id") == "58", named=True)["price"] == 5990.0


def test_kuaisearch_search_of_one_user(kuai: Path, tmp_path: Path) -> None:
    corpus = prepare("kuaisearch", tmp_path / "corpus", path=kuai)
    user = corpus.users["user_id"].to_list().index("1")
    events = np.arange(corpus.offsets[user], corpus.offsets[user + 1])
    items = corpus.items["item_id"].to_list()
    before, search = events[corpus.query[events] < 0], events[corpus.query[events] >= 0]
    assert [items[i] for i in corpus.item[before]][:3] == ["1", "2", "3"]
    assert (corpus.history_end[search] == search[0]).all()  # so the history of the search is what came before
    assert search[0] == before[-1] + 1
    shown = search[corpus.kind[search] == 0]
    assert [items[i] for i in corpus.item[shown]][:2] == ["38", "39"]
    assert corpus.rank[shown].tolist() == list(range(188))
    clicked = search[corpus.kind[search] == 1]
    assert len(clicked) == 16
    assert items[corpus.item[clicked[0]]] == "58"
    assert corpus.rank[clicked[0]] == 20  # 58 was shown in the 21st place


def test_kuaisearch_sample_as_published(shared_data: Path, tmp_path: Path) -> None:
    """Its five files were sampled apart, so most events name items that are not there."""
    source = shared_data / "kuaisearch-demo"
    with pytest.raises(UserError, match="unknown item"):
        prepare("kuaisearch", tmp_path / "corpus", path=source)
    corpus = prepare("kuaisearch", tmp_path / "corpus", path=source, on_error="skip")
    rejects = (corpus.folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    assert corpus.info["rejects"] == len(rejects) == 26_110
    assert len(corpus.user) == 2
    assert len(corpus.relevance) == 200


def test_kuaisearch_judgements_find_their_items(kuai: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for one in kuai.iterdir():
        (folder / one.name).write_bytes(one.read_bytes())
    known = {"item_title": "福利金钻绒床边地毯防尘免洗", "brand": "其他/other", "seller_name": "x", "attr_value": "y"}
    other = {**known, "brand": "金粟兰"}
    write_lines(
        folder / "relevance.jsonl", [{"query": "地毯", "score": 3, **known}, {"query": "毯", "score": 0, **other}]
    )
    corpus = prepare("kuaisearch", tmp_path / "corpus", path=folder)
    assert corpus.relevance.rows() == [("地毯", "5096459", 3.0), ("毯", "relevance-1", 0.0)]
