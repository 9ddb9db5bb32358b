"""A corpus: item and user tables in memory, and the log as arrays on disk, in which a user's history is a slice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.arrays import open_arrays
from onesearch.corpus.schema import SCHEMA_VERSION
from onesearch.errors import UserError
from onesearch.files import read_json

SPELLING: Final = "spelling"
MENDED: Final = "mended.parquet"
"""Folder of a corpus, and the file there with the queries that are not read as they were typed."""


@dataclass(frozen=True)
class Corpus:
    """N items, U users, E events. Events are sorted by user, then time, then session, then their order in the source.

    The arrays are read-only memory maps: only what is looked at takes memory, and the system may take that back.

    Attributes:
        items: (N) rows; the row number is the item's index everywhere in a run.
        users: (U) rows; the row number is the user's index.
        user, item: (E,) int32 indices.
        time: (E,) int64 seconds since 1970, or the position in the user's history where no clock time is known.
        kind: (E,) int8 position in `EVENT_KINDS`.
        session: (E,) int32, equal for the events of one session (basket, result page) of one user.
        query: (E,) int32 index into `queries`, -1 where the event has none.
        place, device: (E,) int32 index into `places` and `devices`, -1 where it is not known.
        rank: (E,) int32 place in the shown list, -1 where it is not known.
        query_kind, query_noise: (E,) int8 positions in `QUERY_KINDS` and `QUERY_NOISE`, -1 where nothing was derived.
        queries, places, devices: the distinct texts, as they were typed; see `meant`.
        offers: what was put forward where and when, rows of `OFFERS`; they may be many, and are read when asked for.
        offsets: (U + 1,) int64; the events of user u are `offsets[u]:offsets[u + 1]`.
        history_end: (E,) int64; the history of event e is `offsets[user[e]]:history_end[e]`: what the user did before
            the session of e began (before the first event of the same time where the log has no sessions).
        next_same, nth_same: (E,) int64 and int32; the next event of the same user with the same item (E where there is
            none), and how many such events came before. With them a history slice lists its distinct items and their
            counts without a sort: event i is the last one of its item before `end` exactly if `next_same[i] >= end`.
    """

    folder: Path
    info: dict[str, Any]
    items: pl.DataFrame
    users: pl.DataFrame
    relevance: pl.DataFrame
    offers: pl.LazyFrame
    user: NDArray[np.int32] = field(repr=False)
    item: NDArray[np.int32] = field(repr=False)
    time: NDArray[np.int64] = field(repr=False)
    kind: NDArray[np.int8] = field(repr=False)
    session: NDArray[np.int32] = field(repr=False)
    query: NDArray[np.int32] = field(repr=False)
    place: NDArray[np.int32] = field(repr=False)
    device: NDArray[np.int32] = field(repr=False)
    rank: NDArray[np.int32] = field(repr=False)
    query_kind: NDArray[np.int8] = field(repr=False)
    query_noise: NDArray[np.int8] = field(repr=False)
    queries: list[str] = field(repr=False)
    places: list[str] = field(repr=False)
    devices: list[str] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    history_end: NDArray[np.int64] = field(repr=False)
    next_same: NDArray[np.int64] = field(repr=False)
    nth_same: NDArray[np.int32] = field(repr=False)

    @property
    def has_clock(self) -> bool:
        """Whether `time` is in seconds; otherwise it is only an order."""
        return bool(self.info["clock"])

    @cached_property
    def meant(self) -> list[str]:
        """`queries` as they are read: with the spelling mended, if `onesearch.corpus.spelling` has learnt to."""
        path = self.folder / SPELLING / MENDED
        if not path.exists():
            return self.queries
        read = list(self.queries)
        for number, text in pl.read_parquet(path).iter_rows():
            read[number] = text
        return read

    def searches(self, events: NDArray[np.integer]) -> NDArray[np.int64]:
        """(n,) a number for the search of each of n events: all events of a session with one query have the same.

        All events of a session, and no others, have one `history_end`.
        """
        found: NDArray[np.int64] = self.history_end[events] * (len(self.queries) + 1) + self.query[events] + 1
        return found

    def spans(self, most: int = 1 << 21) -> Iterator[slice]:
        """The log in pieces of whole users with at most so many events each (more where one user alone has more).

        What depends on one user's events only can be computed piece by piece, so that nothing else is as long as the
        log.
        """
        start = 0
        while start < len(self.user):
            fit = int(np.searchsorted(self.offsets, start + most, side="right")) - 1
            one = int(np.searchsorted(self.offsets, start, side="right"))
            stop = int(self.offsets[max(fit, one)])
            yield slice(start, stop)
            start = stop

    @classmethod
    def load(cls, folder: Path | str) -> Corpus:
        """Read a corpus that `write_corpus` wrote.

        Raises:
            UserError: the folder is no corpus, is incomplete, or has another schema version.
        """
        folder = Path(folder)
        info = read_json(folder / "corpus.json")
        if info.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                "corpus of another schema version",
                place=folder / "corpus.json",
                value=info.get("schema_version"),
                remedy=f"this program reads version {SCHEMA_VERSION}; run `onesearch prepare` again",
            )
        try:
            items = pl.read_parquet(folder / "items.parquet")
            users = pl.read_parquet(folder / "users.parquet")
            relevance = pl.read_parquet(folder / "relevance.parquet")
            offers = pl.scan_parquet(folder / "offers.parquet")
            offers.collect_schema()
            arrays, texts = open_arrays(folder, info["arrays"])
            parts: dict[str, Any] = {**texts, **arrays}
        except (FileNotFoundError, KeyError, pl.exceptions.PolarsError) as error:
            remedy = "run `onesearch prepare` again"
            raise UserError(f"incomplete corpus: {str(error).splitlines()[0]}", place=folder, remedy=remedy) from error
        return cls(folder, info, items, users, relevance, offers, **parts)
