"""What a text system reads of an item."""

from __future__ import annotations

import re

import polars as pl

from onesearch.corpus.reader import Corpus


def item_texts(corpus: Corpus) -> list[str]:
    """(N) title, brand, categories and description of each item; an id that stands for a title says nothing.

    A field whose words are all there already is left out: titles often repeat the brand or the leaf category, and
    saying a word twice would drown the words that tell items apart (their size, say).
    """
    titled = pl.when(pl.col("title") != pl.col("item_id")).then("title")
    rows = corpus.items.select(titled, "brand", "categories", "description").iter_rows()
    return [_joined([title, brand, *(categories or []), description]) for title, brand, categories, description in rows]


def _joined(fields: list[str | None]) -> str:
    """The fields one after the other, without those that say nothing new.

    >>> _joined(["Cola, 12 pk", "Cola", "DRINKS", None])
    'Cola, 12 pk DRINKS'
    """
    kept: list[str] = []
    said: set[str] = set()
    for field in fields:
        words = set(re.findall(r"\w+", (field or "").lower()))
        if not words <= said:
            kept.append(field or "")
            said |= words
    return " ".join(kept)
