"""KuaiSearch: searches of a short-video platform's shop, with what was shown, clicked and bought, and graded relevance.

Li, Chen, Cheng et al.: KuaiSearch: A Large-Scale E-Commerce Search Dataset for Recall, Ranking, and Relevance, 2026
(https://arxiv.org/abs/2602.11518). Five JSON-lines files: items, users, recall, rank, relevance; names may go on after
that ("items_lite.jsonl", "recall_lite.train.jsonl"). How they become a corpus:

- A recall row is one search: its impressions (in the order shown), clicks and purchases become events.
- A rank row is one shown item of a search. What recall rows already tell is not told twice. Its price goes to the item.
- The recently clicked and bought items of a user's very first search become events without a query just before it;
  those of later searches are left out, since the log itself holds what came between.
- `time_index` orders events over all users but has no published unit, so it becomes the position, not a timestamp: the
  corpus has no clock, and splits leave one search out per user.
- Relevance rows carry an item's text but no id. They are matched to items by title and brand; a text that matches none
  becomes an item of its own ("relevance-1", ...), since it is a product that was on sale. The count is logged.
- "UNKNOWN", "no brand" and "other" stand for values that are not known and are left out.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import polars as pl

from onesearch.corpus.rows import read_rows
from onesearch.corpus.sources.hub import fetch, find
from onesearch.corpus.tables import FILE, ROW, Rejects, Tables
from onesearch.errors import UserError

REPOSITORY: Final = "benchen4395/KuaiSearch"
HUB_FILES: Final = ["items_lite*.jsonl", "users*.jsonl", "recall_lite*.jsonl", "rank_lite*.jsonl", "relevance*.jsonl"]

_IDS: Final = pl.List(pl.String())
_SEARCH: Final = {"user_id": pl.String(), "session_id": pl.String(), "time_index": pl.Int64(), "query": pl.String()}
_LEVELS: Final = ("category_level1_name", "category_level2_name", "category_level3_name")
_USER_FIELDS: Final = ("gender", "age_bucket", "fre_country", "fre_province", "fre_city")
_COLUMNS: Final[dict[str, dict[str, pl.DataType]]] = {
    "items": dict.fromkeys(("item_id", "item_title", "brand_name", "seller_name", *_LEVELS), pl.String()),
    "users": dict.fromkeys(("user_id", *_USER_FIELDS), pl.String()),
    "recall": {**_SEARCH, **dict.fromkeys(("impressed_item_ids", "clicked_item_ids", "purchased_item_ids"), _IDS)},
    "rank": {
        **_SEARCH,
        **dict.fromkeys(("recently_clicked_item_ids", "recently_purchased_item_ids"), _IDS),
        "target_item_id": pl.String(),
        "target_item_price": pl.Float64(),
        "is_clicked": pl.Int64(),
        "is_purchased": pl.Int64(),
    },
    "relevance": {
        **dict.fromkeys(("query", "item_title", "brand", "seller_name", "attr_value"), pl.String()),
        "score": pl.Float64(),
    },
}
_SEEN: Final = ("user_id", "session_id", "query", "item_id", "event")
_EVENT: Final = (*_SEEN, "position", "rank", FILE, ROW)

log = logging.getLogger(__name__)


def read(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """The folder with the five files; without one, the Lite edition from the hub."""
    folder = fetch(REPOSITORY, HUB_FILES) if path is None else path
    raw = {table: _files(folder, table, rejects) for table in _COLUMNS}
    items = _items(raw["items"], raw["rank"])
    extra, relevance = _relevance(raw["relevance"], items)
    return Tables(
        items=pl.concat([items, extra], how="diagonal"),
        users=raw["users"].select("user_id", FILE, ROW, attributes=_attributes(*_USER_FIELDS)),
        events=_events(raw["recall"], raw["rank"]),
        relevance=relevance,
    )


def _files(folder: Path, table: str, rejects: Rejects) -> pl.DataFrame:
    found = find(folder, table, (".jsonl", ".jsonl.gz"))
    if not found:
        raise UserError("no such file", place=folder / f"{table}.jsonl", remedy="KuaiSearch has five files, give all")
    columns = _COLUMNS[table]
    return pl.concat([read_rows(one, columns, rejects, required=tuple(columns)) for one in found])


def _known(column: str) -> pl.Expr:
    value = pl.col(column).str.strip_chars()
    return pl.when(~value.is_in(["", "UNKNOWN", "无品牌", "其他/other"])).then(value)


def _attributes(*columns: str, **renamed: str) -> pl.Expr:
    names = {**{column: column for column in columns}, **renamed}
    pairs = [pl.struct(name=pl.lit(name), value=_known(column)) for name, column in names.items()]
    return pl.concat_list(pairs).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null()))


def _items(items: pl.DataFrame, rank: pl.DataFrame) -> pl.DataFrame:
    prices = rank.group_by("target_item_id").agg(price=pl.col("target_item_price").median())
    return items.join(prices, left_on="item_id", right_on="target_item_id", how="left", maintain_order="left").select(
        "item_id",
        "price",
        FILE,
        ROW,
        title="item_title",
        brand=_known("brand_name"),
        categories=pl.concat_list([_known(level) for level in _LEVELS]).list.drop_nulls(),
        attributes=_attributes(seller="seller_name"),
    )


def _events(recall: pl.DataFrame, rank: pl.DataFrame) -> pl.DataFrame:
    recall = recall.rename({"time_index": "position"})
    rank = rank.rename({"time_index": "position", "target_item_id": "item_id"})
    shown = _listed(recall, "impressed_item_ids", "impression")
    shown = shown.with_columns(rank=pl.int_range(pl.len()).over(FILE, ROW).cast(pl.Int32))
    place = shown.unique(["item_id", FILE, ROW], keep="first", maintain_order=True).select("item_id", "rank", FILE, ROW)
    answered = [_listed(recall, "clicked_item_ids", "click"), _listed(recall, "purchased_item_ids", "purchase")]
    answers = pl.concat(answered).join(place, on=["item_id", FILE, ROW], how="left", maintain_order="left")
    told = pl.concat([shown.select(_EVENT), answers.select(_EVENT)])
    flags = {"impression": pl.lit(True), "click": pl.col("is_clicked") == 1, "purchase": pl.col("is_purchased") == 1}
    ranked = pl.concat([rank.filter(flag).with_columns(event=pl.lit(kind)) for kind, flag in flags.items()])
    ranked = ranked.with_columns(rank=pl.lit(None, pl.Int32)).select(_EVENT)
    added = ranked.join(told, on=_SEEN, how="anti", nulls_equal=True, maintain_order="left")
    return pl.concat([_before(recall, rank), told, added])


def _listed(rows: pl.DataFrame, column: str, event: str) -> pl.DataFrame:
    """One event for every item of a list column."""
    kept = rows.select("user_id", "session_id", "query", "position", FILE, ROW, item_id=column, event=pl.lit(event))
    return kept.explode("item_id").filter(pl.col("item_id").is_not_null())


def _before(recall: pl.DataFrame, rank: pl.DataFrame) -> pl.DataFrame:
    """What users clicked and bought before their first search, as their first search tells it."""
    first = pl.concat([recall.select("user_id", "position"), rank.select("user_id", "position")])
    first = first.group_by("user_id").agg(pl.col("position").min())
    told = rank.join(first, on=["user_id", "position"], how="semi", maintain_order="left")
    told = told.unique("user_id", keep="first", maintain_order=True)
    told = told.with_columns(pl.col("position") - 1, session_id=pl.lit(None, pl.String), query=pl.lit(None, pl.String))
    kinds = {"recently_clicked_item_ids": "click", "recently_purchased_item_ids": "purchase"}
    events = pl.concat([_listed(told, column, kind) for column, kind in kinds.items()])
    return events.with_columns(rank=pl.lit(None, pl.Int32)).select(_EVENT)


def _relevance(judged: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The items that only judgements know, and the judgements with item ids."""
    judged = judged.with_columns(pl.col("item_title").str.strip_chars(), brand=_known("brand"))
    known = items.select("item_id", "brand", item_title=pl.col("title").str.strip_chars())
    known = known.unique(["item_title", "brand"], keep="first", maintain_order=True)
    judged = judged.join(known, on=["item_title", "brand"], how="left", nulls_equal=True, maintain_order="left")
    alone = judged.filter(pl.col("item_id").is_null())
    alone = alone.unique(["item_title", "brand"], keep="first", maintain_order=True)
    alone = alone.with_columns(item_id=pl.format("relevance-{}", pl.int_range(1, pl.len() + 1)))
    log.info("%d judged products match no item and become items of their own", len(alone))
    extra = alone.select(
        "item_id",
        "brand",
        FILE,
        ROW,
        title="item_title",
        attributes=_attributes(seller="seller_name", attributes="attr_value"),
    )
    own = alone.select("item_title", "brand", own_id="item_id")
    judged = judged.join(own, on=["item_title", "brand"], how="left", nulls_equal=True, maintain_order="left")
    item_id = pl.coalesce("item_id", "own_id").alias("item_id")
    return extra, judged.select("query", item_id, pl.col("score").alias("grade"), FILE, ROW)
