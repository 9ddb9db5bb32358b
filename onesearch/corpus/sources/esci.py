"""The Shopping Queries Data Set: real queries with products judged exact, substitute, complement or irrelevant.

Reddy, Màrquez, Valero et al.: Shopping Queries Dataset: A Large-Scale ESCI Benchmark for Improving Product Search, 2022
(https://arxiv.org/abs/2206.06588). Two Parquet files, `shopping_queries_dataset_examples.parquet` and
`shopping_queries_dataset_products.parquet`; or, as the hub has them, files in which both are joined and labels spelt
out. There are no users and no events. A product exists once per locale: its item id is "LOCALE:PRODUCT". Exact is grade
3, substitute 2, complement 1, irrelevant 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import polars as pl

from onesearch.corpus.rows import read_rows
from onesearch.corpus.sources.hub import fetch, find
from onesearch.corpus.tables import FILE, ROW, Rejects, Tables
from onesearch.errors import UserError

REPOSITORY: Final = "tasksource/esci"
NAME: Final = "shopping_queries_dataset_"
GRADES: Final = {"I": 0.0, "C": 1.0, "S": 2.0, "E": 3.0}

_ID: Final = {"product_id": pl.String(), "product_locale": pl.String()}
_TEXTS: Final = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
_PRODUCT: Final = {**_ID, **dict.fromkeys(_TEXTS, pl.String())}
_EXAMPLE: Final = {**_ID, "query": pl.String(), "esci_label": pl.String()}


def read(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """The folder with the two files; without one, the joined files of the hub."""
    if path is not None:
        examples, products = (find(path, f"{NAME}{part}", (".parquet",)) for part in ("examples", "products"))
        for files, part in ((examples, "examples"), (products, "products")):
            if not files:
                raise UserError("no such file", place=path / f"{NAME}{part}.parquet", remedy="the source needs both")
    else:
        examples = products = find(fetch(REPOSITORY, ["data/*.parquet"]) / "data", "", (".parquet",))
    needed = (*_ID, "product_title")
    sold = pl.concat([read_rows(one, _PRODUCT, rejects, required=needed) for one in products])
    judged = pl.concat([read_rows(one, _EXAMPLE, rejects, required=tuple(_EXAMPLE)) for one in examples])
    if examples == products:  # joined: a product stands in every row that judges it
        sold = sold.unique(list(_ID), keep="first", maintain_order=True)
    return Tables(items=_items(sold), relevance=_relevance(judged, rejects))


def _item_id() -> pl.Expr:
    return pl.format("{}:{}", "product_locale", "product_id").alias("item_id")


def _items(products: pl.DataFrame) -> pl.DataFrame:
    texts = [pl.when(pl.col(name) != "").then(name) for name in ("product_description", "product_bullet_point")]
    values = {"color": pl.col("product_color"), "locale": pl.col("product_locale")}
    pairs = pl.concat_list([pl.struct(name=pl.lit(name), value=value) for name, value in values.items()])
    joined = pl.concat_str(texts, separator="\n", ignore_nulls=True)
    return products.select(
        FILE,
        ROW,
        _item_id(),
        title="product_title",
        description=pl.when(joined != "").then(joined),
        brand="product_brand",
        attributes=pairs.list.eval(pl.element().filter(pl.element().struct.field("value").is_not_null())),
    )


def _relevance(examples: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    letter = pl.col("esci_label").str.slice(0, 1)
    odd = ~letter.is_in(list(GRADES)) | letter.is_null()
    examples = rejects.drop(examples, odd, "esci_label", "unknown label", "use E, S, C or I")
    grade = letter.replace_strict(GRADES, return_dtype=pl.Float64).alias("grade")
    return examples.select(FILE, ROW, _item_id(), "query", grade)
