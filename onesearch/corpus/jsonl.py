"""JSON lines, plain or gzipped, block by block. A line that does not fit is named."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import polars as pl

from onesearch.corpus.tables import FILE, ROW, Rejects
from onesearch.errors import UserError

CHUNK = 1 << 16
"""Lines parsed at a time: bounds the memory that text takes beside the frame."""

NAMED = 100
"""Lines of a chunk whose keys are looked at where the file's other columns do not matter."""

Columns = Mapping[str, pl.DataType]
Check = Callable[[set[str]], None]
"""Told all columns that a file has, it complains about those that are missing."""

Progress = Callable[[float], None]
"""Called with the share of a file that is read, from 0 to 1."""


def jsonl_blocks(
    path: Path, columns: Columns, rejects: Rejects, check: Check, exhaustive: bool, progress: Progress
) -> Iterator[pl.DataFrame]:
    """Frames of at most `CHUNK` lines each, columns as asked and `FILE` and `ROW`; the names are checked at the end."""
    names, line_number, blank = set(), 0, True
    for lines, share in text_lines(path):
        numbered = [(line_number + i + 1, line) for i, line in enumerate(lines) if not line.isspace()]
        line_number += len(lines)
        blank &= not numbered
        names |= _names(numbered if exhaustive else numbered[:NAMED])
        for frame in _parse(numbered, columns, path, rejects):
            names |= {name for name in columns if frame[name].null_count() < len(frame)}
            yield frame
        progress(share)
    if blank:
        raise UserError("the file is empty", place=path, remedy="write it again")
    check(names)


def text_lines(path: Path) -> Iterator[tuple[list[bytes], float]]:
    """At most `CHUNK` lines at a time of a file, plain or gzipped, and the share of the file that is read.

    Raises:
        UserError: the gzip is damaged.
    """
    size = path.stat().st_size
    lines: list[bytes] = []
    done = 0
    with path.open("rb") as raw, gzip.open(raw) if path.suffix.lower() == ".gz" else raw as handle:
        try:
            for line in handle:
                lines.append(line if done else line.removeprefix(codecs.BOM_UTF8))
                done += 1
                if len(lines) == CHUNK:
                    yield lines, raw.tell() / size
                    lines = []
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            remedy = "copy or download it again"
            raise UserError(f"damaged gzip after row {done}: {error}", place=path, remedy=remedy) from error
    yield lines, 1.0


def _parse(numbered: list[tuple[int, bytes]], columns: Columns, path: Path, rejects: Rejects) -> list[pl.DataFrame]:
    """Frames of the lines that fit. Lines are parsed together; only where that fails are they looked at one by one."""
    try:
        return _parse_together(numbered, columns, path)
    except pl.exceptions.PolarsError:
        fitting = _sift(numbered, columns, path, rejects)
    try:
        return _parse_together(fitting, columns, path)
    except pl.exceptions.PolarsError as error:  # a line that Python reads and Polars does not
        if len(fitting) == 1:
            _reject(fitting, None, f"cannot be read: {str(error).splitlines()[0]}", path, rejects)
            return []
        middle = len(fitting) // 2
        first = _parse(fitting[:middle], columns, path, rejects)
        return first + _parse(fitting[middle:], columns, path, rejects)


def _parse_together(numbered: list[tuple[int, bytes]], columns: Columns, path: Path) -> list[pl.DataFrame]:
    if not numbered:
        return []
    frame = pl.read_ndjson(io.BytesIO(b"\n".join(line for _, line in numbered)), schema=dict(columns))
    rows = pl.Series(ROW, [number for number, _ in numbered], pl.UInt32)
    return [frame.with_columns(pl.lit(str(path)).alias(FILE), rows)]


def _sift(numbered: list[tuple[int, bytes]], columns: Columns, path: Path, rejects: Rejects) -> list[tuple[int, bytes]]:
    """The lines that are JSON objects with values of the right types; the others are rejected."""
    fitting = []
    unfit: dict[str | None, list[tuple[int, bytes]]] = {}  # by column
    for number, line in numbered:
        try:
            record = json.loads(line)
        except ValueError:  # of JSON or UTF-8
            record = None
        column = None
        if isinstance(record, dict):
            column = next((name for name, dtype in columns.items() if not _fits(record.get(name), dtype)), None)
            if column is None:
                fitting.append((number, line))
                continue
        unfit.setdefault(column, []).append((number, line))
    for column, lines in unfit.items():
        reason = "not a JSON object" if column is None else f"not {spell(columns[column])}"
        _reject(lines, column, reason, path, rejects)
    return fitting


def _fits(value: object, dtype: pl.DataType) -> bool:
    """Whether Polars will take a JSON value as this type; as text it takes anything."""
    if value is None or dtype == pl.String:
        return True
    if isinstance(dtype, pl.List):
        struct = isinstance(dtype.inner, pl.Struct)
        return isinstance(value, list) and (not struct or all(isinstance(one, dict | None) for one in value))
    if dtype.is_float():
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is int and -(2**63) <= value < 2**63


def _reject(lines: list[tuple[int, bytes]], column: str | None, reason: str, path: Path, rejects: Rejects) -> None:
    """Reject lines for their value of one column, or as a whole."""
    texts = [line.decode("utf-8", errors="replace").strip() for _, line in lines]
    if column is None:
        values, records = texts, [json.dumps(text, ensure_ascii=False) for text in texts]
        remedy = "mend or remove the line"
    else:
        found = [json.loads(text)[column] for text in texts]
        values = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in found]
        records, remedy = texts, f"write {reason.removeprefix('not ')}"
    rows = {"row": [number for number, _ in lines], "value": values, "record": records}
    located = {"file": pl.lit(str(path)), "column": pl.lit(column, pl.String)}
    rejects.add(pl.DataFrame(rows).with_columns(**located), reason, remedy)


def spell(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List):
        inner = dtype.inner
        fields = ", ".join(field.name for field in inner.fields) if isinstance(inner, pl.Struct) else "texts"
        return f"a list of {{{fields}}}" if isinstance(inner, pl.Struct) else f"a list of {fields}"
    return "a whole number" if dtype.is_integer() else "a number" if dtype.is_float() else "text"


def _names(numbered: list[tuple[int, bytes]]) -> set[str]:
    """The keys of the objects: found by inferring a schema, or where that fails of those that Python can read."""
    if not numbered:
        return set()
    text = b"\n".join(line for _, line in numbered)
    try:
        return set(pl.read_ndjson(io.BytesIO(text), infer_schema_length=None).columns)
    except pl.exceptions.PolarsError:
        names: set[str] = set()
        for _, line in numbered:
            try:
                names |= dict(json.loads(line)).keys()
            except (ValueError, TypeError):  # it is among the rejects
                continue
        return names
