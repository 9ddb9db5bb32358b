"""What a text system reads of an item."""

from __future__ import annotations

import polars as pl

from onesearch.corpus.reader import Corpus


def item_texts(corpus: Corpus) -> list[str]:
    """(N) title, brand, categories and description of each item; absent ones left out."""
    fields = ("title", "brand", pl.col("categories").list.join(" "), "description")
    return corpus.items.select(pl.concat_str(*fields, separator=" ", ignore_nulls=True)).to_series().to_list()
