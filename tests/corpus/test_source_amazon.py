"""Amazon Reviews 2023: reviews with metadata, and the 5-core splits."""

import csv
from pathlib import Path

import pytest
from published import Rows, write_lines

from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.sources import prepare
from onesearch.errors import UserError

BOUGHT = [("AE", "B1", 5.0, 1588687728923), ("AE", "B2", 1.0, 1588000000000), ("AF", "B2", 4.0, 1500000000001)]
REVIEWS: Rows = [
    {
        "user_id": user,
        "parent_asin": item,
        "asin": f"{item}x",
        "rating": rating,
        "timestamp": time,
        "text": "",
        "images": [],
    }
    for user, item, rating, time in BOUGHT
]
SHARED = {
    "main_category": "All Beauty",
    "average_rating": 4.0,
    "features": [],
    "details": {"Package": "1"},
    "videos": [],
}
META: Rows = [
    {
        **SHARED,
        "parent_asin": "B1",
        "title": "Brush",
        "description": ["Soft.", "Round."],
        "price": 9.99,
        "images": [
            {"thumb": "t1", "large": "l1", "variant": "MAIN", "hi_res": "h1"},
            {"thumb": "t2", "large": "l2", "variant": "PT01", "hi_res": None},
        ],
        "store": "Brushes",
        "categories": [],
    },
    {
        **SHARED,
        "parent_asin": "B2",
        "title": "Soap",
        "description": [],
        "price": "from 14.99",
        "images": [],
        "store": None,
        "categories": ["Beauty", "Soaps"],
    },
    {**SHARED, "parent_asin": "B3", "title": "Comb", "price": None, "store": None, "categories": []},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_amazon_reviews(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "source"
    write_lines(folder / f"All_Beauty{suffix}", REVIEWS)
    write_lines(folder / f"meta_All_Beauty{suffix}", META)
    corpus = prepare("amazon", tmp_path / "corpus", path=folder)
    assert corpus.items["item_id"].to_list() == ["B1", "B2", "B3"]
    brush, soap = corpus.items.rows(named=True)[:2]
    assert (brush["description"], brush["brand"], brush["price"]) == ("Soft. Round.", "Brushes", 9.99)
    assert (brush["categories"], brush["images"]) == (["All Beauty"], ["h1", "l2"])
    assert (soap["description"], soap["price"], soap["categories"]) == (None, None, ["Beauty", "Soaps"])
    assert corpus.users["user_id"].to_list() == ["AE", "AF"]
    assert corpus.time.tolist() == [1588000000, 1588687728, 1500000000]
    assert corpus.item.tolist() == [1, 0, 1]
    assert set(corpus.kind.tolist()) == {EVENT_KINDS.index("purchase")}
    assert corpus.queries == []


def test_amazon_five_core_splits(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_lines(folder / "meta_All_Beauty.jsonl", META)
    rows = {"train": [["AE", "B2", "1.0", "1588000000000", ""]], "test": [["AE", "B1", "5.0", "1588687728923", "B2"]]}
    for split, lines in rows.items():
        with (folder / f"All_Beauty.{split}.csv").open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([["user_id", "parent_asin", "rating", "timestamp", "history"], *lines])
    corpus = prepare("amazon", tmp_path / "corpus", path=folder)
    assert corpus.items["item_id"].to_list() == ["B1", "B2"]  # only what the splits hold
    assert corpus.time.tolist() == [1588000000, 1588687728]
    with (folder / "All_Beauty.test.csv").open("a", encoding="utf-8") as handle:
        handle.write("AG,B1,5.0,yesterday,\n")
    with pytest.raises(UserError, match=r"All_Beauty.test.csv row 2 column timestamp: not a whole number: 'yesterday'"):
        prepare("amazon", tmp_path / "other", path=folder)


def test_amazon_needs_both_files(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_lines(folder / "All_Beauty.jsonl", REVIEWS)
    with pytest.raises(UserError, match=r"meta_NAME.jsonl: no such file"):
        prepare("amazon", tmp_path / "corpus", path=folder)
    write_lines(folder / "meta_All_Beauty.jsonl", META[:1])
    with pytest.raises(UserError, match=r"All_Beauty.jsonl row 2 column item_id: unknown item: 'B2'"):
        prepare("amazon", tmp_path / "corpus", path=folder)
