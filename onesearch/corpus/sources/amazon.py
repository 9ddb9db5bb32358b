"""Amazon Reviews 2023 as published: reviews and metadata as JSON lines, or the 5-core CSV splits with the metadata.

Hou, Li, He et al.: Bridging Language and Items for Retrieval and Recommendation, 2024
(https://arxiv.org/abs/2403.03952). One folder holds `meta_NAME.jsonl` and either `NAME.jsonl` (reviews) or CSV files
(`NAME.csv`, or `NAME.train.csv` with `.valid` and `.test`), each plain or gzipped; where there are CSV files they are
the log, and only their items are kept, as in the published benchmark.

A review counts as a purchase of its `parent_asin`, whatever the rating. Nobody searched here: queries are null. Prices
that are no number ("None", "from 14.99") are null; so is what the schema has no place for (ratings, review texts,
`details`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from onesearch.corpus.rows import read_rows
from onesearch.corpus.sources.hub import fetch, find
from onesearch.corpus.tables import FILE, ROW, Rejects, Tables
from onesearch.errors import UserError

REPOSITORY: Final = "McAuley-Lab/Amazon-Reviews-2023"
CATEGORY: Final = "All_Beauty"
"""What is fetched where no path is given: one of the smaller of the 33 categories."""

_LOG: Final = {"user_id": pl.String(), "parent_asin": pl.String(), "timestamp": pl.Int64()}
_META: Final = {
    "parent_asin": pl.String(),
    "title": pl.String(),
    "description": pl.List(pl.String()),
    "store": pl.String(),
    "main_category": pl.String(),
    "categories": pl.List(pl.String()),
    "price": pl.String(),  # published as a number, a text or null
    "images": pl.List(pl.Struct({"hi_res": pl.String(), "large": pl.String()})),
}


def read(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """A folder of published files; without one, the reviews of `CATEGORY` from the hub."""
    if path is None:
        names = [f"raw/review_categories/{CATEGORY}.jsonl", f"raw/meta_categories/meta_{CATEGORY}.jsonl"]
        root = fetch(REPOSITORY, names)
        meta, log = [root / names[1]], [root / names[0]]
    else:
        lines = find(path, "", (".jsonl", ".jsonl.gz"))
        meta = [one for one in lines if one.name.startswith("meta_")]
        log = find(path, "", (".csv", ".csv.gz")) or [one for one in lines if one not in meta]
        for files, name in ((meta, "meta_NAME.jsonl"), (log, "NAME.jsonl (reviews) or NAME.csv")):
            if not files:
                raise UserError("no such file", place=path / name, remedy="plain or gzipped, as published")
    needed = ("parent_asin", "title")
    items = pl.concat([read_rows(one, _META, rejects, required=needed) for one in meta])
    bought = pl.concat([read_rows(one, _LOG, rejects, required=tuple(_LOG)) for one in log])
    if ".csv" in log[0].name.lower():
        items = items.join(bought, on="parent_asin", how="semi", maintain_order="left")
    return Tables(items=_items(items), events=_events(bought))


def _items(items: pl.DataFrame) -> pl.DataFrame:
    joined = pl.col("description").list.drop_nulls().list.join(" ").str.strip_chars()
    root = pl.concat_list("main_category").list.drop_nulls()
    pictures = pl.element().struct.field("hi_res").fill_null(pl.element().struct.field("large"))
    return items.select(
        FILE,
        ROW,
        item_id="parent_asin",
        title="title",
        description=pl.when(joined != "").then(joined),
        brand="store",
        categories=pl.when(pl.col("categories").list.len() > 0).then("categories").otherwise(root),
        price=pl.col("price").cast(pl.Float64, strict=False),
        images=pl.col("images").list.eval(pictures.drop_nulls()),
    )


def _events(log: pl.DataFrame) -> pl.DataFrame:
    return log.select(
        FILE,
        ROW,
        user_id="user_id",
        item_id="parent_asin",
        timestamp=pl.col("timestamp") // 1000,  # published in milliseconds
        event=pl.lit("purchase"),
    )
