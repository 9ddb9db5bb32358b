"""A user's own data, already in the corpus schema: `items.*`, `events.*`, and where there are any `users.*`,
`relevance.*`, `offers.*`, as JSON lines (plain or gzipped) or Parquet. The events may be more than fit into memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import polars as pl

from onesearch.corpus.rows import read_blocks
from onesearch.corpus.schema import REQUIRED, TABLES
from onesearch.corpus.tables import Blocks, Rejects, Tables, empty
from onesearch.errors import UserError


def read_jsonl(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """A folder of JSON lines."""
    return _read(path, rejects, (".jsonl", ".jsonl.gz"))


def read_parquet(path: Path | None, rejects: Rejects, seed: int) -> Tables:
    """A folder of Parquet files."""
    return _read(path, rejects, (".parquet",))


def _read(path: Path | None, rejects: Rejects, suffixes: tuple[str, ...]) -> Tables:
    if path is None:
        raise UserError("this source needs the folder of your files", remedy="give --path")
    if not path.is_dir():
        remedy = f"give the folder that holds items{suffixes[0]} and events{suffixes[0]}"
        raise UserError("no such folder", place=path, remedy=remedy)
    tables = Tables(items=empty("items"), rejects=rejects)
    for table, columns in TABLES.items():
        found = [path / f"{table}{suffix}" for suffix in suffixes if (path / f"{table}{suffix}").exists()]
        if len(found) > 1:
            names = " and ".join(one.name for one in found)
            raise UserError("the same table twice", place=path, value=names, remedy="keep one of them")
        if found:
            part, needed = rejects.section(), REQUIRED[table]
            read = partial(read_blocks, found[0], columns, part, required=needed, exhaustive=True)
            setattr(tables, table, Blocks(read) if table == "events" else pl.concat([empty(table), *read()]))
        elif table in ("items", "events"):
            raise UserError("no such file", place=path / f"{table}{suffixes[0]}", remedy=f"the source needs {table}")
    return tables
