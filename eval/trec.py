"""Results in the text forms of TREC: run files and qrels, which every evaluation tool reads and writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.errors import UserError
from onesearch.files import atomic_path


def write_run(
    path: Path,
    system: str,
    queries: Sequence[str],
    items: NDArray[np.int32],
    scores: NDArray[np.float32],
    item_ids: Sequence[str],
) -> None:
    """One line `query Q0 item rank score system` per result.

    Readers of run files sort by score and ignore the rank. Where scores are equal the later one is therefore written
    as the next smaller number, and the file gives the very ranking of `items`.

    Args:
        queries: Q query ids.
        items, scores: (Q, K), -1 where there is no result.
        item_ids: N ids, by item index.
    """
    names = [_field(name) for name in item_ids]
    tag = _field(system)
    falling = _strictly_falling(scores)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for query, row, row_scores in zip(map(_field, queries), items.tolist(), falling.tolist(), strict=True):
            kept = [(item, score) for item, score in zip(row, row_scores, strict=True) if item >= 0]
            handle.writelines(
                f"{query} Q0 {names[item]} {rank} {score:.9g} {tag}\n" for rank, (item, score) in enumerate(kept, 1)
            )


def write_qrels(path: Path, queries: Sequence[str], targets: NDArray[np.int32], item_ids: Sequence[str]) -> None:
    """One line `query 0 item 1` per request: the item that followed it."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(
            f"{_field(query)} 0 {_field(item_ids[target])} 1\n"
            for query, target in zip(queries, targets.tolist(), strict=True)
        )


def write_labels(
    path: Path,
    queries: Sequence[str],
    items: NDArray[np.int32],
    labels: NDArray[np.integer],
    item_ids: Sequence[str],
) -> None:
    """One line `query 0 item label` per item of a list (Q, K), also for those that are wrong."""
    names = [_field(name) for name in item_ids]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for query, row, row_labels in zip(map(_field, queries), items.tolist(), labels.tolist(), strict=True):
            handle.writelines(
                f"{query} 0 {names[item]} {label}\n" for item, label in zip(row, row_labels, strict=True) if item >= 0
            )


def write_users(path: Path, queries: Sequence[str], users: Sequence[str]) -> None:
    """One line `query user` per query."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        handle.writelines(f"{_field(query)} {_field(user)}\n" for query, user in zip(queries, users, strict=True))


def read_run(path: Path) -> pl.DataFrame:
    """Columns query, item, score and system of a run file.

    Raises:
        UserError: a line that is none of a run, a score that is no number, or an item twice for one query.
    """
    rows = _fields(path, ("query", None, "item", None, "score", "system"), "query Q0 item rank score system")
    rows = _numbers(path, rows, "score", pl.Float64())
    return _once(path, rows).select("query", "item", "score", "system")


def read_qrels(path: Path) -> pl.DataFrame:
    """Columns query, item and label (Int32) of a qrels file; a label below 0 counts as 0.

    Raises:
        UserError: a line that is none of qrels, a label that is no whole number, or an item twice for one query.
    """
    rows = _numbers(path, _fields(path, ("query", None, "item", "label"), "query 0 item label"), "label", pl.Int32())
    return _once(path, rows).select("query", "item", pl.col("label").clip(0))


def read_users(path: Path) -> dict[str, str]:
    """The user of each query, from lines `query user`.

    Raises:
        UserError: a line with another number of fields.
    """
    return dict(_fields(path, ("query", "user"), "query user").select("query", "user").iter_rows())


def _fields(path: Path, names: Sequence[str | None], form: str) -> pl.DataFrame:
    """The named fields of each line that is not empty, with its text and number."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("no such file", place=path) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8 text", place=path) from error
    pattern = "^" + r"\s+".join(rf"(?P<{name}>\S+)" if name else r"\S+" for name in names) + "$"
    lines = pl.DataFrame({"text": text.split("\n")}).with_row_index("line", 1)
    lines = lines.with_columns(pl.col("text").str.strip_chars()).filter(pl.col("text") != "")
    if lines.is_empty():
        raise UserError("nothing in the file", place=path, remedy=f"a line is `{form}`")
    found = lines.with_columns(pl.col("text").str.extract_groups(pattern).alias("found")).unnest("found")
    _refuse(path, found, pl.col("query").is_null(), f"not a line `{form}`", None)
    return found


def _numbers(path: Path, rows: pl.DataFrame, column: str, kind: pl.DataType) -> pl.DataFrame:
    found = rows.with_columns(pl.col(column).cast(kind, strict=False).alias("number"))
    wrong = pl.col("number").is_null()
    if kind == pl.Float64():
        wrong |= pl.col("number").is_nan()
    wanted = "a number" if kind == pl.Float64() else "a whole number"
    _refuse(path, found, wrong, f"the {column} is not {wanted}", column)
    return found.with_columns(pl.col("number").alias(column))


def _once(path: Path, rows: pl.DataFrame) -> pl.DataFrame:
    again = ~pl.struct("query", "item").is_first_distinct()
    _refuse(path, rows, again, "the item occurs twice for one query", "text")
    return rows


def _refuse(path: Path, rows: pl.DataFrame, wrong: pl.Expr, problem: str, column: str | None) -> None:
    """Raises a `UserError` that names the first line for which `wrong` holds."""
    bad = rows.filter(wrong)
    if not bad.is_empty():
        first = bad.row(0, named=True)
        raise UserError(problem, place=f"{path} line {first['line']}", value=first[column or "text"])


def _field(value: str) -> str:
    """The fields are divided by spaces, so spaces within one are percent-encoded."""
    return re.sub(r"[\s%]", lambda found: quote(found[0]), value)


def _strictly_falling(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(Q, K) the same scores, each at least one float32 step below the one before."""
    falling = scores.astype(np.float32)
    for column in range(1, falling.shape[1]):
        below = np.nextafter(falling[:, column - 1], np.float32(-np.inf))
        falling[:, column] = np.minimum(falling[:, column], below)
    return falling
