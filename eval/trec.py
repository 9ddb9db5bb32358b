"""Results in the text forms of TREC: run files and qrels, which every evaluation tool reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

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
