"""A corpus in memory: item and user tables, and the log as arrays in which a user's history is a slice."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.schema import EVENT_KINDS, SCHEMA_VERSION
from onesearch.errors import UserError
from onesearch.files import read_json


@dataclass(frozen=True)
class Corpus:
    """N items, U users, E events. Events are sorted by user, then time, then session, then their order in the source.

    Attributes:
        items: (N) rows; the row number is the item's index everywhere in a run.
        users: (U) rows; the row number is the user's index.
        user, item: (E,) int32 indices.
        time: (E,) int64 seconds since 1970, or the position in the user's history where no clock time is known.
        kind: (E,) int8 position in `EVENT_KINDS`.
        session: (E,) int32, equal for the events of one session (basket, result page) of one user.
        query: (E,) int32 index into `queries`, -1 where the event has none.
        queries: the distinct query texts.
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
    extra: pl.DataFrame = field(repr=False)  # (E) rows: rank, query_kind, query_noise
    user: NDArray[np.int32] = field(repr=False)
    item: NDArray[np.int32] = field(repr=False)
    time: NDArray[np.int64] = field(repr=False)
    kind: NDArray[np.int8] = field(repr=False)
    session: NDArray[np.int32] = field(repr=False)
    query: NDArray[np.int32] = field(repr=False)
    queries: list[str] = field(repr=False)
    offsets: NDArray[np.int64] = field(repr=False)
    history_end: NDArray[np.int64] = field(repr=False)
    next_same: NDArray[np.int64] = field(repr=False)
    nth_same: NDArray[np.int32] = field(repr=False)

    @property
    def has_clock(self) -> bool:
        """Whether `time` is in seconds; otherwise it is only an order."""
        return bool(self.info["clock"])

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
            events = pl.read_parquet(folder / "events.parquet")
        except (FileNotFoundError, pl.exceptions.PolarsError) as error:
            remedy = "run `onesearch prepare` again"
            raise UserError(f"incomplete corpus: {str(error).splitlines()[0]}", place=folder, remedy=remedy) from error
        return cls._from_frames(folder, info, items, users, relevance, events)

    @classmethod
    def _from_frames(
        cls,
        folder: Path,
        info: dict[str, Any],
        items: pl.DataFrame,
        users: pl.DataFrame,
        relevance: pl.DataFrame,
        events: pl.DataFrame,
    ) -> Corpus:
        user = _index_of(events["user_id"], users["user_id"])
        item = _index_of(events["item_id"], items["item_id"])
        time = events["timestamp" if info["clock"] else "position"].to_numpy().astype(np.int64)
        queries = events["query"].drop_nulls().unique(maintain_order=True)
        query = _index_of(events["query"], queries)
        session = events["session_id"].rank("dense").fill_null(0).to_numpy().astype(np.int32)
        offsets = np.searchsorted(user, np.arange(len(users) + 1)).astype(np.int64)
        next_same, nth_same = same_item_links(user, item)
        return cls(
            folder=folder,
            info=info,
            items=items,
            users=users,
            relevance=relevance,
            extra=events.select("rank", "query_kind", "query_noise"),
            user=user,
            item=item,
            time=time,
            kind=_index_of(events["event"], pl.Series(EVENT_KINDS)).astype(np.int8),
            session=session,
            query=query,
            queries=queries.to_list(),
            offsets=offsets,
            history_end=_history_ends(user, time, session),
            next_same=next_same,
            nth_same=nth_same,
        )


def _index_of(values: pl.Series, vocabulary: pl.Series) -> NDArray[np.int32]:
    """(n,) int32 place of each value in the vocabulary, -1 for null."""
    lookup = vocabulary.alias("value").to_frame().with_row_index("index")
    found = values.alias("value").to_frame().join(lookup, on="value", how="left", maintain_order="left")
    return found["index"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int32)


def _history_ends(user: NDArray[np.int32], time: NDArray[np.int64], session: NDArray[np.int32]) -> NDArray[np.int64]:
    """(E,) first event of this event's session (of its user and time, where session is 0).

    Sessions may interleave; the history of each still ends before its own first event.
    """
    if len(user) == 0:
        return np.zeros(0, np.int64)
    starts = np.ones(len(user), bool)
    starts[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1]) | (time[1:] != time[:-1])
    first = np.flatnonzero(starts)
    ends = first[np.cumsum(starts) - 1].astype(np.int64)
    named = np.flatnonzero(session > 0)
    key = user[named].astype(np.int64) * (int(session.max()) + 1) + session[named]
    _, begin, group = np.unique(key, return_index=True, return_inverse=True)
    ends[named] = named[begin][group]
    return ends


def same_item_links(user: NDArray[np.int32], item: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Per event: the next event with the same user and item (E if none), and how many came before."""
    total = len(user)
    next_same = np.full(total, total, np.int64)
    nth_same = np.zeros(total, np.int32)
    if total == 0:
        return next_same, nth_same
    key = user.astype(np.int64) * (int(item.max()) + 1) + item
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    next_same[order[:-1][same]] = order[1:][same]
    run_start = np.flatnonzero(np.concatenate([[True], ~same]))
    run = np.cumsum(np.concatenate([[True], ~same])) - 1
    nth_same[order] = np.arange(total) - run_start[run]
    return next_same, nth_same
