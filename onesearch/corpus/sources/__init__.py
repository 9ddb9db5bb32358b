"""Where a corpus comes from: one file a source, each turning published files into the five tables of the schema.

To add a source: write a function `read(path, rejects, seed) -> Tables` in a file of its own, and name it here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from onesearch.corpus.ingest import Progress
from onesearch.corpus.reader import Corpus
from onesearch.corpus.sources import amazon, completejourney, esci, kuaisearch, own
from onesearch.corpus.tables import OnError, Rejects, Tables
from onesearch.corpus.writer import write_corpus
from onesearch.errors import UserError

Source = Callable[[Path | None, Rejects, int], Tables]
"""Reads the files at a path (or its own, where that is None); the rejects take what cannot be read; the seed is of
whatever the source derives."""

SOURCES: Final[dict[str, Source]] = {
    "completejourney": completejourney.read,
    "jsonl": own.read_jsonl,
    "parquet": own.read_parquet,
    "kuaisearch": kuaisearch.read,
    "amazon": amazon.read,
    "esci": esci.read,
}

log = logging.getLogger(__name__)


def prepare(
    source: str,
    folder: Path,
    *,
    path: Path | None = None,
    on_error: OnError = "stop",
    seed: int = 7,
    users: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Corpus:
    """Read a source, write the corpus to `folder`, and load it.

    Args:
        source: a name in `SOURCES`.
        folder: where the corpus goes; one that is there is replaced.
        path: the source's file or folder; None where the source brings or fetches its own data.
        on_error: what to do with rows that break the schema, see `write_corpus`.
        seed: of derived queries.
        users: keep only the first so many users, by id, and their events; all items stay.
        progress: called with (done, total) once events are being read.

    Raises:
        UserError: an unknown source, files that are missing or damaged, or (with "stop") a row that breaks the schema.
    """
    if source not in SOURCES:
        raise UserError("unknown source", value=source, remedy=f"use one of {', '.join(SOURCES)}")
    if users is not None and users < 1:
        raise UserError("a slice needs at least one user", place="users", value=users, remedy="give a number from 1 up")
    rejects = Rejects(on_error)
    tables = SOURCES[source](None if path is None else Path(path), rejects, seed)
    tables.rejects = rejects
    write_corpus(Path(folder), tables, source=source, on_error=on_error, users=users, progress=progress)
    return Corpus.load(folder)
