"""Sort a log that does not fit into memory by user: first into buckets of neighbouring users, then each by itself.

`scatter` and `in_order` take a block and return blocks, and keep nothing between calls: Ray Data could map them over
the blocks of a larger log on more than one machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

USER: Final = "_user"
SESSION: Final = "_session"


def boundaries(events_of: pl.DataFrame, most: float) -> pl.Series:
    """The first user of each bucket but the first, so that a bucket holds about `most` events; one user stays in one.

    Args:
        events_of: `user_id`, in any order, and `len`, how many events the user has.
        most: a bucket may exceed it by the events of its last user.
    """
    users = events_of.sort("user_id")
    bucket = ((pl.col("len").cum_sum() - pl.col("len")) / most).floor().cast(pl.Int64)
    return users.filter(bucket != bucket.shift(1).fill_null(0))["user_id"]


def bucket_of(users: pl.Series, first: pl.Series) -> NDArray[np.int64]:
    """(n,) the bucket of each user, given the `boundaries`."""
    return first.search_sorted(users, side="right").to_numpy().astype(np.int64)


def scatter(block: pl.DataFrame, first: pl.Series) -> Iterator[tuple[int, pl.DataFrame]]:
    """The rows of a block by bucket, each part in the order of the block."""
    bucket = bucket_of(block["user_id"], first)
    order = np.argsort(bucket, kind="stable")
    edges = np.searchsorted(bucket[order], np.arange(len(first) + 2))
    block = block[order]
    for number in np.flatnonzero(np.diff(edges)):
        yield int(number), block[int(edges[number]) : int(edges[number + 1])]


def in_order(bucket: pl.DataFrame, users: pl.Series, clock: bool) -> pl.DataFrame:
    """The events of a bucket sorted by user, time, session (those without one first), and as they came.

    Texts are numbered first, since numbers are sorted several times faster; the numbers come along as `USER`, the place
    among `users` (ascending), and `SESSION`, the place among the bucket's session ids, -1 for none.
    """
    user, session = place_in(bucket["user_id"], users), ranks(bucket["session_id"])
    numbered = bucket.with_columns(pl.Series(USER, user), pl.Series(SESSION, session))
    return numbered[np.lexsort((session, bucket["timestamp" if clock else "position"].to_numpy(), user))]


def ranks(texts: pl.Series) -> NDArray[np.int32]:
    """(n,) the place of each text among the distinct ones in ascending order, -1 for null.

    >>> ranks(pl.Series(["b", None, "a", "b"])).tolist()
    [1, -1, 0, 1]
    """
    return place_in(texts, texts.drop_nulls().unique().sort())


def place_in(values: pl.Series, vocabulary: pl.Series) -> NDArray[np.int32]:
    """(n,) int32 place of each value in the vocabulary, -1 for null and for what is not in it."""
    lookup = vocabulary.alias("value").to_frame().with_row_index("index")
    found = values.alias("value").to_frame().join(lookup, on="value", how="left", maintain_order="left")
    return found["index"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int32)
