"""What a source hands to the corpus writer: five tables whose rows still know the file and line they came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import polars as pl

from onesearch.corpus.schema import TABLES
from onesearch.errors import UserError

HELD: Final = 1000
"""Rows that are rejected together wait on disk if they are more than this."""

OnError = Literal["stop", "skip", "mend"]

FILE: Final = "_file"
"""Column: the file a row was read from."""

ROW: Final = "_row"
"""Column: the place of a row in its file, from 1."""


class Blocks(Iterator[pl.DataFrame]):
    """Rows of a file, read when the next block is asked for; `share` of the file is read already."""

    share = 0.0

    def __init__(self, read: Callable[..., Iterator[pl.DataFrame]]) -> None:
        """
        Args:
            read: reads the file, and calls `progress` with the share that is read.
        """
        self._blocks = read(progress=partial(setattr, self, "share"))

    def __next__(self) -> pl.DataFrame:
        return next(self._blocks)


@dataclass
class Tables:
    """The five tables of a corpus before they are checked.

    Attributes:
        items, users, events, relevance, offers: columns of the schema (any that are not required may be absent), and
            `FILE` and `ROW`. None stands for an empty table. Events may come as blocks that are read one after the
            other, so that a log need not fit into memory.
        rejects: takes the rows that could not even be read, also while blocks of events are being read.
    """

    items: pl.DataFrame
    events: pl.DataFrame | Blocks | None = None
    users: pl.DataFrame | None = None
    relevance: pl.DataFrame | None = None
    offers: pl.DataFrame | None = None
    rejects: Rejects | None = None

    def get(self, table: Literal["items", "users", "relevance", "offers"]) -> pl.DataFrame:
        """One of the tables that fit into memory; an absent one is an empty frame of the full schema."""
        frame: pl.DataFrame | None = getattr(self, table)
        return empty(table) if frame is None else frame

    def blocks(self) -> Iterator[pl.DataFrame]:
        """The events; those that are read from a file come once."""
        if isinstance(self.events, pl.DataFrame):
            return iter((self.events,))
        return iter(self.events or ())

    @property
    def share(self) -> float:
        """How much of the events is read already."""
        return self.events.share if isinstance(self.events, Blocks) else 1.0


def empty(table: str) -> pl.DataFrame:
    """A table without rows, in the full schema."""
    return pl.DataFrame(schema={**TABLES[table], FILE: pl.String, ROW: pl.UInt32})


class Rejects:
    """Rows that break the schema: with "stop" the first one ends the work, with "skip" all are collected.

    "mend" is "skip", but what can be mended is kept: an item without a title is called by its id.
    """

    SCHEMA: Final = {
        "file": pl.String(),
        "row": pl.UInt32(),
        "column": pl.String(),
        "value": pl.String(),
        "reason": pl.String(),
        "record": pl.String(),  # JSON
    }

    def __init__(self, on_error: OnError = "stop") -> None:
        if on_error not in ("stop", "skip", "mend"):
            raise UserError("unknown way to treat bad rows", value=on_error, remedy="use stop, skip or mend")
        self.on_error = on_error
        self._parts: list[pl.DataFrame | Path | Rejects] = []
        self._disk: TemporaryDirectory[str] | None = None
        self._rules: dict[tuple[str, str], Rejects] = {}

    def section(self) -> Rejects:
        """Rejects that are listed at this place among the others, whenever they are found."""
        part = Rejects(self.on_error)
        self._parts.append(part)
        return part

    def frames(self) -> Iterator[pl.DataFrame]:
        """All collected rows, columns as in `SCHEMA`."""
        for part in self._parts:
            if isinstance(part, Rejects):
                yield from part.frames()
            else:
                yield pl.read_parquet(part) if isinstance(part, Path) else part

    def add(self, rows: pl.DataFrame, reason: str, remedy: str) -> None:
        """Reject `rows` (columns as in `SCHEMA` but `reason`, with any record); none is fine."""
        if rows.is_empty():
            return
        first = rows.row(0, named=True)
        place = f"{first['file']} row {first['row']}" + (f" column {first['column']}" if first["column"] else "")
        if self.on_error == "stop":
            raise UserError(reason, place=place, value=first["value"], remedy=remedy)
        reasoned = rows.with_columns(reason=pl.lit(reason)).select(*self.SCHEMA)
        self._keep(reasoned.cast(pl.Schema(self.SCHEMA)))

    def _keep(self, rows: pl.DataFrame) -> None:
        """A log whose rows are all bad must not fill the memory."""
        if len(rows) <= HELD:
            self._parts.append(rows)
            return
        self._disk = self._disk or TemporaryDirectory(prefix="onesearch-rejects-")
        path = Path(self._disk.name) / f"{len(self._parts)}.parquet"
        rows.write_parquet(path, compression="lz4", statistics=False)
        self._parts.append(path)

    def drop(self, frame: pl.DataFrame, bad: pl.Expr, column: str, reason: str, remedy: str) -> pl.DataFrame:
        """`frame` without the rows where `bad` holds; those are rejected for what their `column` holds.

        A `bad` that is null does not hold. Rows that a rule rejects are listed together, also where a table is checked
        block by block.
        """
        if (column, reason) not in self._rules:
            self._rules[column, reason] = self.section()
        mask = frame.select(bad.fill_null(False).alias("bad"))["bad"]
        if not mask.any():
            return frame
        shown = pl.col(column) if column in frame.columns else pl.lit(None, pl.String)
        if frame.schema.get(column, pl.String()).is_nested():
            shown = pl.struct(column).struct.json_encode()
        rows = frame.filter(mask).select(
            file=FILE,
            row=ROW,
            column=pl.lit(column),
            value=shown.cast(pl.String, strict=False),
            record=pl.struct(pl.exclude(FILE, ROW)).struct.json_encode(),
        )
        self._rules[column, reason].add(rows, reason, remedy)
        return frame.filter(~mask)


def write_rejects(path: Path, rejects: Rejects) -> None:
    """One JSON object a line: file, row, column, value, reason, and the record itself where it could be read."""
    fields = pl.struct(pl.exclude("record")).struct.json_encode().str.strip_suffix("}")
    line = pl.concat_str(fields, pl.lit(',"record":'), pl.col("record").fill_null("null"), pl.lit("}"))
    with path.open("w", encoding="utf-8") as handle:
        for frame in rejects.frames():
            handle.writelines(f"{text}\n" for text in frame.select(line).to_series())
