"""Rows of a file as a frame: JSON lines, Parquet and CSV, plain or gzipped. A row that does not fit is named.

Every reader returns the asked columns with the asked types, and `FILE` and `ROW`. Reading is exact: a text where a
number belongs is an error, never null; only ids and texts may be written as numbers, they become text.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import polars as pl

from onesearch.corpus.tables import FILE, ROW, Rejects
from onesearch.errors import UserError

CHUNK = 1 << 16
"""Lines parsed at a time: bounds the memory that text takes beside the frame."""

NAMED = 100
"""Lines of a chunk whose keys are looked at where the file's other columns do not matter."""

Columns = Mapping[str, pl.DataType]
log = logging.getLogger(__name__)


def read_rows(
    path: Path, columns: Columns, rejects: Rejects, *, required: tuple[str, ...] = (), exhaustive: bool = False
) -> pl.DataFrame:
    """Read one file by its suffix: .jsonl, .jsonl.gz, .parquet, .csv, .csv.gz.

    Args:
        path: the file.
        columns: the columns to read and their types; one that the file lacks is null everywhere.
        rejects: takes the rows that do not fit.
        required: columns whose absence from the whole file is an error.
        exhaustive: warn about columns of the file that are not asked for, since their content is left out.

    Raises:
        UserError: the file is missing, empty, damaged or of another format; or (with "stop") a row does not fit.
    """
    if not path.is_file():
        raise UserError("no such file", place=path)
    if path.stat().st_size == 0:
        raise UserError("the file is empty", place=path, remedy="write it again")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    readers: dict[str, Callable[[Path, Columns, Rejects], tuple[pl.DataFrame, set[str]]]]
    readers = {"jsonl": partial(_read_jsonl, exhaustive), "parquet": _read_parquet, "csv": _read_csv}
    if kind not in readers:
        raise UserError("unknown file format", place=path, remedy="use .jsonl, .jsonl.gz, .parquet, .csv or .csv.gz")
    frame, names = readers[kind](path, columns, rejects)
    for column in required:
        if column not in names:
            remedy = f"the file has: {', '.join(sorted(names)) or 'none'}"
            raise UserError("missing column", place=path, value=column, remedy=remedy)
    unknown = sorted(names - set(columns))
    if exhaustive and unknown:
        log.warning("%s: columns that the corpus has no place for are left out: %s", path, ", ".join(unknown))
    return frame


def _read_jsonl(exhaustive: bool, path: Path, columns: Columns, rejects: Rejects) -> tuple[pl.DataFrame, set[str]]:
    frames, names, line_number, empty = [], set(), 0, True
    for lines in _chunks(path):
        numbered = [(line_number + i + 1, line) for i, line in enumerate(lines) if not line.isspace()]
        line_number += len(lines)
        empty &= not numbered
        frames += _parse(numbered, columns, path, rejects)
        names |= _names(numbered if exhaustive else numbered[:NAMED])
    if empty:
        raise UserError("the file is empty", place=path, remedy="write it again")
    frame = pl.concat([pl.DataFrame(schema={**columns, FILE: pl.String, ROW: pl.UInt32}), *frames])
    return frame, names | {name for name in columns if frame[name].null_count() < len(frame)}


def _chunks(path: Path) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    done = 0
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as handle:
        try:
            for line in handle:
                lines.append(line if done else line.removeprefix(codecs.BOM_UTF8))
                done += 1
                if len(lines) == CHUNK:
                    yield lines
                    lines = []
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            remedy = "copy or download it again"
            raise UserError(f"damaged gzip after row {done}: {error}", place=path, remedy=remedy) from error
    yield lines


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
        reason = "not a JSON object" if column is None else f"not {_spell(columns[column])}"
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


def _spell(dtype: pl.DataType) -> str:
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


def _read_parquet(path: Path, columns: Columns, rejects: Rejects) -> tuple[pl.DataFrame, set[str]]:
    try:
        names = set(pl.read_parquet_schema(path))
        frame = pl.read_parquet(path, columns=[name for name in columns if name in names])
    except pl.exceptions.PolarsError as error:
        problem = f"not a readable Parquet file: {str(error).splitlines()[0]}"
        raise UserError(problem, place=path, remedy="copy or download it again") from error
    return _fit(frame, columns, path, rejects), names


def _read_csv(path: Path, columns: Columns, rejects: Rejects) -> tuple[pl.DataFrame, set[str]]:
    content = b"".join(line for lines in _chunks(path) for line in lines)
    try:
        frame = pl.read_csv(io.BytesIO(content), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        problem = f"not a readable CSV file: {str(error).splitlines()[0]}"
        raise UserError(problem, place=path, remedy="copy or download it again") from error
    names = set(frame.columns)
    asked = [name for name in columns if name in names]
    located = _locate(frame.select(asked), path)
    for name in asked:  # every CSV value is text; here, and only here, a number may be written as one
        if columns[name].is_numeric():
            number = pl.col(name).str.strip_chars().cast(columns[name], strict=False)
            spelt = _spell(columns[name])
            bad = number.is_null() & pl.col(name).is_not_null()
            located = rejects.drop(located, bad, name, f"not {spelt}", f"write {spelt}").with_columns(number)
    return _complete(located, columns), names


def _locate(frame: pl.DataFrame, path: Path) -> pl.DataFrame:
    return frame.with_columns(pl.lit(str(path)).alias(FILE), pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW))


def _complete(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in columns.items() if name not in frame.columns]
    return frame.with_columns(absent).select(*columns, FILE, ROW)


def _fit(frame: pl.DataFrame, columns: Columns, path: Path, rejects: Rejects) -> pl.DataFrame:
    """Cast typed columns; numbers may become text, dates become seconds, a text never becomes a number."""
    frame = _locate(frame, path)
    for name, dtype in columns.items():
        found = frame.schema.get(name)
        if found is None or found == dtype:
            continue
        value = pl.col(name)
        if dtype.is_integer() and isinstance(found, pl.Datetime):
            cast: pl.Expr = value.dt.epoch("s")
        elif found == pl.Null or (dtype.is_numeric() and found.is_numeric()):
            value = value.fill_nan(None) if found.is_float() else value
            cast = value.cast(dtype, strict=False)
            if dtype.is_integer() and found.is_float():
                cast = pl.when(value.round() == value).then(cast)
        elif dtype == pl.String and not found.is_nested():
            cast = value.cast(pl.String)
        elif dtype.is_nested() and found.is_nested():
            try:
                frame = frame.with_columns(frame[name].cast(dtype))
                continue
            except pl.exceptions.PolarsError:
                cast = pl.lit(None, dtype)
        else:
            cast = pl.lit(None, dtype)
        spelt = _spell(dtype)
        bad = value.is_not_null() & cast.is_null()
        frame = rejects.drop(frame, bad, name, f"not {spelt}", f"write {spelt}").with_columns(cast.alias(name))
    return _complete(frame, columns)
