"""Rows of a file as a frame: JSON lines, Parquet and CSV, plain or gzipped. A row that does not fit is named.

Every reader returns the asked columns with the asked types, and `FILE` and `ROW`. Reading is exact: a text where a
number belongs is an error, never null; only ids and texts may be written as numbers, they become text.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from onesearch.corpus.jsonl import Check, Columns, Progress, jsonl_blocks, spell, text_lines
from onesearch.corpus.tables import FILE, ROW, Rejects
from onesearch.errors import UserError

BLOCK = 1 << 18
"""Rows of a Parquet file read at a time."""

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
    blocks = read_blocks(path, columns, rejects.section(), required=required, exhaustive=exhaustive)
    return pl.concat([pl.DataFrame(schema={**columns, FILE: pl.String, ROW: pl.UInt32}), *blocks])


def read_blocks(
    path: Path,
    columns: Columns,
    rejects: Rejects,
    *,
    required: tuple[str, ...] = (),
    exhaustive: bool = False,
    progress: Progress = lambda share: None,
) -> Iterator[pl.DataFrame]:
    """The same block by block, so that the file need not fit into memory (a CSV must).

    Mistakes are told while blocks are read; that a JSON-lines file lacks a column is known only at its end.
    """
    if not path.is_file():
        raise UserError("no such file", place=path)
    if path.stat().st_size == 0:
        raise UserError("the file is empty", place=path, remedy="write it again")
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    check = partial(_check, path, columns, required, exhaustive)
    if kind == "jsonl":
        yield from jsonl_blocks(path, columns, rejects, check, exhaustive, progress)
    elif kind == "parquet":
        yield from _parquet_blocks(path, columns, rejects, check, progress)
    elif kind == "csv":
        yield _read_csv(path, columns, rejects, check)
    else:
        raise UserError("unknown file format", place=path, remedy="use .jsonl, .jsonl.gz, .parquet, .csv or .csv.gz")


def _check(path: Path, columns: Columns, required: tuple[str, ...], exhaustive: bool, names: set[str]) -> None:
    for column in required:
        if column not in names:
            remedy = f"the file has: {', '.join(sorted(names)) or 'none'}"
            raise UserError("missing column", place=path, value=column, remedy=remedy)
    unknown = sorted(names - set(columns))
    if exhaustive and unknown:
        log.warning("%s: columns that the corpus has no place for are left out: %s", path, ", ".join(unknown))


def _parquet_blocks(
    path: Path, columns: Columns, rejects: Rejects, check: Check, progress: Progress
) -> Iterator[pl.DataFrame]:
    try:
        # page by page: a writer may have put the whole log into one row group
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            names = set(file.schema_arrow.names)
            check(names)
            asked = [name for name in columns if name in names]
            done = 0
            for batch in file.iter_batches(BLOCK, columns=asked):
                yield _fit(pl.DataFrame(pl.from_arrow(batch)), columns, path, rejects, done)
                done += len(batch)
                progress(done / file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        problem = f"not a readable Parquet file: {str(error).splitlines()[0]}"
        raise UserError(problem, place=path, remedy="copy or download it again") from error


def _read_csv(path: Path, columns: Columns, rejects: Rejects, check: Check) -> pl.DataFrame:
    content = b"".join(line for lines, _ in text_lines(path) for line in lines)
    try:
        frame = pl.read_csv(io.BytesIO(content), infer_schema=False)
    except pl.exceptions.PolarsError as error:
        problem = f"not a readable CSV file: {str(error).splitlines()[0]}"
        raise UserError(problem, place=path, remedy="copy or download it again") from error
    names = set(frame.columns)
    check(names)
    asked = [name for name in columns if name in names]
    located = _locate(frame.select(asked), path)
    for name in asked:  # every CSV value is text; here, and only here, a number may be written as one
        if columns[name].is_numeric():
            number = pl.col(name).str.strip_chars().cast(columns[name], strict=False)
            spelt = spell(columns[name])
            bad = number.is_null() & pl.col(name).is_not_null()
            located = rejects.drop(located, bad, name, f"not {spelt}", f"write {spelt}").with_columns(number)
    return _complete(located, columns)


def _locate(frame: pl.DataFrame, path: Path, before: int = 0) -> pl.DataFrame:
    row = pl.int_range(before + 1, before + pl.len() + 1, dtype=pl.UInt32)
    return frame.with_columns(pl.lit(str(path)).alias(FILE), row.alias(ROW))


def _complete(frame: pl.DataFrame, columns: Columns) -> pl.DataFrame:
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in columns.items() if name not in frame.columns]
    return frame.with_columns(absent).select(*columns, FILE, ROW)


def _fit(frame: pl.DataFrame, columns: Columns, path: Path, rejects: Rejects, before: int) -> pl.DataFrame:
    """Cast typed columns; numbers may become text, dates become seconds, a text never becomes a number.

    `before`: rows of the file that came before the frame's.
    """
    frame = _locate(frame, path, before)
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
        spelt = spell(dtype)
        bad = value.is_not_null() & cast.is_null()
        frame = rejects.drop(frame, bad, name, f"not {spelt}", f"write {spelt}").with_columns(cast.alias(name))
    return _complete(frame, columns)
