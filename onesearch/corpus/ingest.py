"""A log that does not fit into memory becomes sorted events and arrays.

It passes through three times, block by block: it is read and put on disk in the corpus's types (`read_log`); checked
and put into buckets of neighbouring users (`check_log`); and bucket by bucket sorted and written (`write_log`). What is
in memory is one block or one bucket, whatever the size of the log, and besides the items, the users and the distinct
queries. The result depends on none of these sizes.

The work on a block is in functions that take a block and return blocks, and keep nothing between calls
(`check_events`, `scatter`, `in_order`, `arrays_of`), so that Ray Data could map them over a log on several machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import polars as pl
from polars.io.plugins import register_io_source

from onesearch.corpus.arrays import VOCABULARIES, ArrayFiles, arrays_of
from onesearch.corpus.blocks import Spool, regrouped, system_errors
from onesearch.corpus.schema import EVENTS, USERS
from onesearch.corpus.sorting import boundaries, bucket_of, in_order, scatter
from onesearch.corpus.tables import Rejects, Tables, empty
from onesearch.corpus.validate import check_events, complete

BLOCK: Final = 1 << 18
"""Events that are read and checked together."""

BUCKET: Final = 400 * 2**20
"""Bytes of events that are sorted together, as they are in memory; sorting them takes a few times as much."""

FIXED: Final = 160
"""Bytes of an event in memory beside its texts."""

GROUP: Final = 122_880
"""Events in a row group of `events.parquet`, or somewhat fewer, so that all groups have one size."""

READ, CHECKED, TOTAL = 350, 600, 1000
"""How much of a thousand is done when the events are read, and when they are checked."""

Progress = Callable[[int, int], None]
_TEXTS: Final = ("user_id", "item_id", "query", "session_id", "place", "device")


@dataclass(frozen=True)
class ReadLog:
    """The events as they were read, in the full schema.

    Attributes:
        spool: the events.
        events_of: `user_id`, and `len`, how many events the user has.
        clock: whether any event has a timestamp.
        size: bytes of all events in memory.
    """

    spool: Spool
    events_of: pl.DataFrame
    clock: bool
    size: int

    def last_of(self, users: int, known: pl.DataFrame) -> str | None:
        """The last of the first so many users of the log and of the table of known users; None where there is none."""
        both = pl.concat([self.events_of["user_id"], known["user_id"]]).drop_nulls().unique().sort().head(users)
        return None if both.is_empty() else str(both[-1])


@dataclass(frozen=True)
class CheckedLog:
    """The events that satisfy the schema, in buckets of neighbouring users.

    Attributes:
        buckets: in the order of users; within a bucket events are in the order of the source.
        first: the first user of each bucket but the first.
        events: how many they are.
        clock: whether they have timestamps, or positions.
    """

    buckets: list[Spool]
    first: pl.Series
    events: int
    clock: bool


def read_log(tables: Tables, folder: Path, progress: Progress) -> ReadLog:
    """Read the events of a source and put them on disk."""
    spool, clock, size = Spool(folder), False, 0
    typed = (complete(block, "events") for block in tables.blocks())
    for block in regrouped(typed, repeat(BLOCK)):
        spool.append(block)
        clock |= block["timestamp"].null_count() < len(block)
        size += FIXED * len(block) + sum(int(block[name].str.len_bytes().sum() or 0) for name in _TEXTS)
        progress(int(READ * tables.share), TOTAL)
    if not spool.blocks:
        spool.append(empty("events"))
    return ReadLog(spool, spool.scan().group_by("user_id").len().collect(engine="streaming"), clock, size)


def check_log(
    read: ReadLog, items: pl.Series, last: str | None, rejects: Rejects, folder: Path, progress: Progress
) -> CheckedLog:
    """Check the events and put them into buckets.

    Args:
        items: the known item ids.
        last: users with an id behind this one are left out.
        rejects: takes the events that break the schema.
        folder: where the buckets go.
    """
    stripped = read.events_of.drop_nulls().with_columns(pl.col("user_id").str.strip_chars())
    most = BUCKET * read.spool.rows / max(read.size, 1)
    first = boundaries(stripped.group_by("user_id").agg(pl.col("len").sum()), max(most, 1))
    buckets = [Spool(folder / f"{number:08}") for number in range(len(first) + 1)]
    for number, block in enumerate(read.spool.take()):
        if last is not None:  # rows without a user stay, so that they are found and named
            block = block.filter((pl.col("user_id") <= last) | pl.col("user_id").is_null())
        for bucket, part in scatter(check_events(block, items, read.clock, rejects).select(*EVENTS), first):
            buckets[bucket].append(part)
        progress(READ + (CHECKED - READ) * (number + 1) // read.spool.blocks, TOTAL)
    events = sum(bucket.rows for bucket in buckets)
    return CheckedLog(buckets, first, events, read.clock and events > 0)


def write_log(
    checked: CheckedLog, items: pl.Series, known: pl.DataFrame, folder: Path, progress: Progress
) -> tuple[pl.DataFrame, dict[str, Any], dict[str, int]]:
    """Sort each bucket, and write `events.parquet` and the arrays.

    Args:
        items: the item ids.
        known: the rows of the users that are known beside the log.

    Returns:
        All users in the order of their index; the description of the arrays; how many distinct queries, places and
        devices there are.
    """
    files, ids = ArrayFiles(folder / "arrays", checked.events), [pl.Series("user_id", [], pl.String)]
    bucket_of_known = pl.Series(bucket_of(known["user_id"], checked.first))

    def in_buckets() -> Iterator[pl.DataFrame]:
        for number, bucket in enumerate(checked.buckets):
            events = pl.concat([pl.DataFrame(schema=EVENTS), *bucket.take()])
            users = pl.concat([events["user_id"], known["user_id"].filter(bucket_of_known == number)]).unique().sort()
            ids.append(users)
            events = in_order(events, users, checked.clock)
            files.append(arrays_of(events, items, checked.clock), events.select(*VOCABULARIES), len(users))
            yield events.select(*EVENTS)
            progress(CHECKED + (TOTAL - CHECKED) * (number + 1) // len(checked.buckets), TOTAL)

    _write_events(folder / "events.parquet", regrouped(in_buckets(), _groups(checked.events)))
    arrays, distinct = files.close()
    users = pl.DataFrame({"user_id": pl.concat(ids)}).join(known, on="user_id", how="left", maintain_order="left")
    return users.select(*USERS), arrays, distinct


def _groups(events: int) -> list[int]:
    """The sizes of the row groups."""
    count = -(-events // GROUP)
    return [events // count + (number < events % count) for number in range(count)]


def _write_events(path: Path, groups: Iterable[pl.DataFrame]) -> None:
    """Write row groups as they come."""

    def source(*asked: Any) -> Iterator[pl.DataFrame]:
        yield from groups

    with system_errors(path):
        register_io_source(source, schema=pl.Schema(EVENTS)).sink_parquet(path)
