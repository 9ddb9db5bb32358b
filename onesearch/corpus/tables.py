"""What a source hands to the corpus writer: four tables whose rows still know the file and line they came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import polars as pl

from onesearch.corpus.schema import TABLES
from onesearch.errors import UserError

OnError = Literal["stop", "skip"]

FILE: Final = "_file"
"""Column: the file a row was read from."""

ROW: Final = "_row"
"""Column: the place of a row in its file, from 1."""


@dataclass
class Tables:
    """The four tables of a corpus before they are checked.

    Attributes:
        items, users, events, relevance: columns of the schema (any that are not required may be absent), and `FILE`
            and `ROW`. None stands for an empty table.
        rejects: the rows that could not even be read, in the form of `Rejects.frame`.
    """

    items: pl.DataFrame
    events: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    relevance: pl.DataFrame | None = None
    rejects: pl.DataFrame | None = None

    def get(self, table: str) -> pl.DataFrame:
        """One of the four tables; an absent one is an empty frame of the full schema."""
        frame: pl.DataFrame | None = getattr(self, table)
        return pl.DataFrame(schema={**TABLES[table], FILE: pl.String, ROW: pl.UInt32}) if frame is None else frame


class Rejects:
    """Rows that break the schema: with "stop" the first one ends the work, with "skip" all are collected."""

    SCHEMA: Final = {
        "file": pl.String(),
        "row": pl.UInt32(),
        "column": pl.String(),
        "value": pl.String(),
        "reason": pl.String(),
        "record": pl.String(),  # JSON
    }

    def __init__(self, on_error: OnError = "stop") -> None:
        if on_error not in ("stop", "skip"):
            raise UserError("unknown way to treat bad rows", value=on_error, remedy="use stop or skip")
        self.on_error = on_error
        self._frames: list[pl.DataFrame] = []

    @property
    def frame(self) -> pl.DataFrame:
        """All collected rows, columns as in `SCHEMA`."""
        return pl.concat([pl.DataFrame(schema=self.SCHEMA), *self._frames])

    def add(self, rows: pl.DataFrame, reason: str, remedy: str) -> None:
        """Reject `rows` (columns as in `SCHEMA` but `reason`, with any record); none is fine."""
        if rows.is_empty():
            return
        first = rows.row(0, named=True)
        place = f"{first['file']} row {first['row']}" + (f" column {first['column']}" if first["column"] else "")
        if self.on_error == "stop":
            raise UserError(reason, place=place, value=first["value"], remedy=remedy)
        reasoned = rows.with_columns(reason=pl.lit(reason)).select(*self.SCHEMA)
        self._frames.append(reasoned.cast(pl.Schema(self.SCHEMA)))

    def extend(self, frame: pl.DataFrame | None) -> None:
        """Take over rows that were collected elsewhere."""
        if frame is not None:
            self._frames.append(frame)

    def drop(self, frame: pl.DataFrame, bad: pl.Expr, column: str, reason: str, remedy: str) -> pl.DataFrame:
        """`frame` without the rows where `bad` holds; those are rejected for what their `column` holds.

        A `bad` that is null does not hold.
        """
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
        self.add(rows, reason, remedy)
        return frame.filter(~mask)


def write_rejects(path: Path, rejects: pl.DataFrame) -> None:
    """One JSON object a line: file, row, column, value, reason, and the record itself where it could be read."""
    fields = pl.struct(pl.exclude("record")).struct.json_encode().str.strip_suffix("}")
    lines = rejects.select(pl.concat_str(fields, pl.lit(',"record":'), pl.col("record").fill_null("null"), pl.lit("}")))
    with path.open("w", encoding="utf-8") as handle:
        handle.writelines(f"{line}\n" for line in lines.to_series())
