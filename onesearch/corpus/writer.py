"""Write a checked corpus: four Parquet files and `corpus.json`, as one folder that is either whole or absent."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from pathlib import Path

import polars as pl

from onesearch.corpus.schema import SCHEMA_VERSION, TABLES
from onesearch.corpus.tables import OnError, Rejects, Tables, write_rejects
from onesearch.corpus.validate import validate
from onesearch.errors import UserError
from onesearch.files import atomic_path, checksum, write_json

log = logging.getLogger(__name__)


def write_corpus(folder: Path, tables: Tables, *, source: str, on_error: OnError = "stop") -> None:
    """Check `tables`, sort the events by user, time, session and source order, and write the corpus to `folder`.

    Args:
        folder: where to; a corpus that is there is replaced.
        tables: what a source read.
        source: its name, for `corpus.json`.
        on_error: "stop" at the first row that breaks the schema, or "skip" such rows: they are left out, written to
            `rejects.jsonl` and counted in `corpus.json`.

    Raises:
        UserError: a row breaks the schema, the folder holds something else, or the disk is full. Nothing is written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "corpus.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("something else is there", place=folder, remedy="name a new folder for the corpus")
    rejects = Rejects(on_error)
    rejects.extend(tables.rejects)
    checked = validate(tables, rejects)
    events = checked.get("events")
    clock = events["timestamp"].null_count() < len(events)
    events = events.sort("user_id", "timestamp" if clock else "position", "session_id", maintain_order=True)
    checked.events = events
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        for table, schema in TABLES.items():
            _write_parquet(temporary / f"{table}.parquet", checked.get(table).select(*schema))
        rejected = rejects.frame
        if len(rejected):
            write_rejects(temporary / "rejects.jsonl", rejected)
            for reason, count in rejected["reason"].value_counts(sort=True).iter_rows():
                log.warning("%s rows skipped: %s; see %s", f"{count:,}", reason, folder / "rejects.jsonl")
        sums = "".join(checksum(temporary / f"{table}.parquet") for table in TABLES)
        info = {
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "clock": clock,
            "items": len(checked.items),
            "users": len(checked.get("users")),
            "events": len(events),
            "queries": events["query"].drop_nulls().n_unique(),
            "relevance": len(checked.get("relevance")),
            "checksum": hashlib.sha256(sums.encode()).hexdigest(),
            "rejects": len(rejected),
        }
        write_json(temporary / "corpus.json", info)


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Polars hides what the system said inside an error of its own; say it as the system does."""
    try:
        frame.write_parquet(path)
    except pl.exceptions.ComputeError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        code = int(found[1])
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = errno.ENOSPC if full else code
        raise OSError(code, os.strerror(code), str(path)) from error
