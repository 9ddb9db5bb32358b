"""What is on offer where a request is made, at its moment: displayed in the store, in the mailer, with a coupon.

Offers hold from one second until another, at one place or everywhere. The seconds in which any begins or ends cut time
into periods in which nothing changes, so a place and a period are a row with a set of items. What is on offer is known
when a request is made, as prices are; nothing of it comes from events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.reader import Corpus
from onesearch.corpus.sorting import place_in
from onesearch.corpus.split import Requests
from onesearch.errors import UserError

KINDS: Final = 8
"""At most so many kinds of offers are told apart."""

MOST: Final = 2**27
"""At most so many items in all rows together."""


@dataclass(frozen=True)
class Offers:
    """Rows of items; row (p + 1) T + t is of place p (-1: unknown, or one that no offer names) in period t of T.

    Attributes:
        kinds: K names of what is told apart.
        places: numbers of the corpus's places to numbers of the rows', -1 where there are no offers of their own.
        cuts: (T - 1,) int64 seconds in which a period ends and the next begins, ascending.
        key: (n,) int64, ascending: row times N, and item. kind: (n,) uint8, a bit for each of the kinds.
        row_count: R. items: N of the corpus.
    """

    kinds: tuple[str, ...]
    places: NDArray[np.int64]
    cuts: NDArray[np.int64]
    key: NDArray[np.int64]
    kind: NDArray[np.uint8]
    row_count: int
    items: int

    @classmethod
    def of(cls, corpus: Corpus, kinds: Sequence[str]) -> Offers:
        """The offers of some kinds; without any, every row is empty.

        Raises:
            UserError: more kinds than `KINDS`, or more items on offer in all periods and places than `MOST`.
        """
        remedy = "leave out what matters least: `offers: false` in the training's YAML reads none"
        if len(kinds) > KINDS:
            raise UserError(f"more than {KINDS} kinds of offers", value=", ".join(kinds), remedy=remedy)
        named = corpus.offers.filter(pl.col("kind").is_in(list(kinds)))
        own = named.select(pl.col("place").drop_nulls().unique().sort()).collect()["place"]
        places = place_in(pl.Series(corpus.places, dtype=pl.String), own).astype(np.int64)
        table = _numbered(named, corpus.items["item_id"], own, kinds)
        cuts = np.unique(np.concatenate([table["start"], table["end"]]))
        table = table.with_columns(
            pl.lit(np.searchsorted(cuts, table[name], "right").astype(np.int32)).alias(name)
            for name in ("start", "end")
        )
        everywhere = table.filter(pl.col("place") < 0)
        parts = [table.filter(pl.col("place") >= 0)]
        parts += [everywhere.with_columns(place=pl.lit(place, pl.Int32)) for place in range(-1, len(own))]
        taken = sum(int((part["end"] - part["start"]).sum()) for part in parts)
        if taken > MOST:
            raise UserError(f"{taken:,} items on offer in all periods and places", place="offers", remedy=remedy)
        total, periods = len(corpus.items), len(cuts) + 1
        key, kind = _each_once(*zip(*(_by_period(part, periods, total) for part in parts), strict=True))
        return cls(tuple(kinds), places, cuts, key, kind, (len(own) + 1) * periods, total)

    def rows(self, requests: Requests) -> NDArray[np.int64]:
        """(Q,) the row that holds for each request."""
        known = np.append(self.places, -1)[requests.place]  # -1, unknown, takes the last
        return (known + 1) * (len(self.cuts) + 1) + np.searchsorted(self.cuts, requests.time, "right")

    def of_items(self, rows: NDArray[np.int64], items: NDArray[np.integer]) -> NDArray[np.float32]:
        """(Q, H, K) 1 where an item (Q, H) is on offer in its request's row (Q,); nothing in empty places, -1."""
        asked = rows[:, None] * self.items + items
        if not len(self.key):
            return np.zeros((*items.shape, len(self.kinds)), np.float32)
        place = np.searchsorted(self.key, asked).clip(max=len(self.key) - 1)
        bits = self.kind[place] * ((items >= 0) & (self.key[place] == asked))
        return ((bits[..., None] >> np.arange(len(self.kinds))) & 1).astype(np.float32)


def _numbered(offers: pl.LazyFrame, items: pl.Series, places: pl.Series, kinds: Sequence[str]) -> pl.DataFrame:
    """Offers with numbers for texts: item, place (-1: everywhere) and kind int32; start and end int64."""
    vocabularies = {"item_id": items, "place": places, "kind": pl.Series(kinds, dtype=pl.String)}
    for name, known in vocabularies.items():
        numbers = known.alias(name).to_frame().with_row_index(f"{name}_number").lazy()
        offers = offers.join(numbers, on=name, how="left")
    numbered = [pl.col(f"{name}_number").cast(pl.Int32).fill_null(-1).alias(name) for name in vocabularies]
    return offers.select(*numbered, "start", "end").collect(engine="streaming")


def _by_period(offers: pl.DataFrame, periods: int, items: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Row and item in one number, and the kind's bit, for each period that each offer lasts."""
    item, place, kind, start, end = (column.to_numpy() for column in offers)
    length = end - start
    period = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length - start, length)
    row = np.repeat(place.astype(np.int64) + 1, length) * periods + period
    return row * items + np.repeat(item, length), np.repeat((1 << kind).astype(np.uint8), length)


def _each_once(
    keys: Sequence[NDArray[np.int64]], kinds: Sequence[NDArray[np.uint8]]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The different keys, ascending, and the bits of each together."""
    key, kind = np.concatenate(keys), np.concatenate(kinds)
    order = np.argsort(key)
    key, kind = key[order], kind[order]
    begin = np.flatnonzero(np.diff(key, prepend=-1))
    return key[begin], np.bitwise_or.reduceat(kind, begin) if len(kind) else kind


def offer_kinds(corpus: Corpus) -> tuple[str, ...]:
    """The kinds of offers that a corpus has, by name."""
    return tuple(corpus.offers.select(pl.col("kind").unique().sort()).collect()["kind"])
