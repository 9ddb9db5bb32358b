"""Write a checked corpus: Parquet files, arrays and `corpus.json`, as one folder that is either whole or absent."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from pathlib import Path

import polars as pl

from onesearch.corpus.blocks import system_errors
from onesearch.corpus.ingest import Progress, check_log, read_log, write_log
from onesearch.corpus.schema import SCHEMA_VERSION, TABLES
from onesearch.corpus.tables import OnError, Rejects, Tables, write_rejects
from onesearch.corpus.validate import check_items, check_offers, check_relevance, check_users
from onesearch.errors import UserError
from onesearch.files import atomic_path, checksum, write_json

log = logging.getLogger(__name__)


def write_corpus(
    folder: Path,
    tables: Tables,
    *,
    source: str,
    on_error: OnError = "stop",
    users: int | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Check `tables`, sort the events by user, time, session and source order, and write the corpus to `folder`.

    Items, users, judgements and offers are held in memory, events are not; see `onesearch.corpus.ingest`.

    Args:
        folder: where to; a corpus that is there is replaced.
        tables: what a source read, or goes on reading while its blocks of events are taken.
        source: its name, for `corpus.json`.
        on_error: "stop" at the first row that breaks the schema, or "skip" such rows: they are left out, written to
            `rejects.jsonl` and counted in `corpus.json`; "mend" also keeps items without a title, under their ids.
        users: keep only the first so many users, by id, and their events; all items stay.
        progress: called with (done, total).

    Raises:
        UserError: a row breaks the schema, the folder holds something else, or the disk is full. Nothing is written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "corpus.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("something else is there", place=folder, remedy="name a new folder for the corpus")
    rejects = Rejects(on_error) if tables.rejects is None else tables.rejects
    part = {table: rejects.section() for table in TABLES}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        read = read_log(tables, temporary.with_name("read"), progress)
        last = None if users is None else read.last_of(users, tables.get("users"))
        items = check_items(tables.items, part["items"])
        known = check_users(_until(tables.get("users"), last), part["users"])
        checked = check_log(read, items["item_id"], last, part["events"], temporary.with_name("checked"), progress)
        relevance = check_relevance(tables.get("relevance"), items["item_id"], part["relevance"])
        offers = check_offers(tables.get("offers"), items["item_id"], checked.clock, part["offers"])
        people, arrays, distinct = write_log(checked, items["item_id"], known, temporary, progress)
        for table, frame in {"items": items, "users": people, "relevance": relevance, "offers": offers}.items():
            path = temporary / f"{table}.parquet"
            with system_errors(path):
                frame.select(*TABLES[table]).write_parquet(path)
        sums = "".join(checksum(temporary / f"{table}.parquet") for table in TABLES)
        info = {
            "schema_version": SCHEMA_VERSION,
            "source": source,
            "clock": checked.clock,
            "items": len(items),
            "users": len(people),
            "events": checked.events,
            **distinct,
            "relevance": len(relevance),
            "offers": len(offers),
            "checksum": hashlib.sha256(sums.encode()).hexdigest(),
            "rejects": _report(rejects, temporary, folder),
            "arrays": arrays,
        }
        write_json(temporary / "corpus.json", info)


def _until(users: pl.DataFrame, last: str | None) -> pl.DataFrame:
    """Rows without a user stay, so that they are found and named."""
    return users if last is None else users.filter((pl.col("user_id") <= last) | pl.col("user_id").is_null())


def _report(rejects: Rejects, temporary: Path, folder: Path) -> int:
    """Write and log the rejected rows; how many they are."""
    reasons: Counter[str] = Counter()
    for frame in rejects.frames():
        reasons.update(dict(frame["reason"].value_counts().iter_rows()))
    if reasons:
        write_rejects(temporary / "rejects.jsonl", rejects)
    for reason, count in reasons.most_common():
        log.warning("%s rows skipped: %s; see %s", f"{count:,}", reason, folder / "rejects.jsonl")
    return reasons.total()
