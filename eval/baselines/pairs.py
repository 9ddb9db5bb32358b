"""Flat lists of (request, item) pairs: for candidates whose number differs from request to request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def top_of_pairs(
    row: NDArray[np.int64], item: NDArray[np.int32], score: NDArray[np.float32], rows: int, k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(rows, k) the best items of each row and their scores, -1 where a row has no more; equal scores by item.

    >>> top_of_pairs(np.array([0, 1, 0]), np.array([5, 6, 7]), np.array([0.1, 0.2, 0.3]), rows=2, k=2)[0]
    array([[ 7,  5],
           [ 6, -1]], dtype=int32)
    """
    order = np.lexsort((item, -score, row))
    row, item, score = row[order], item[order], score[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(rows))[row]
    kept = place < k
    items = np.full((rows, k), -1, np.int32)
    scores = np.full((rows, k), -np.inf, np.float32)
    items[row[kept], place[kept]] = item[kept]
    scores[row[kept], place[kept]] = score[kept]
    return items, scores


def find_pairs(
    row: NDArray[np.int64],
    item: NDArray[np.integer],
    in_row: NDArray[np.int64],
    in_item: NDArray[np.integer],
    items: int,
) -> NDArray[np.int64]:
    """(P,) the place of each pair (row, item) in the pairs (in_row, in_item), -1 where it is not there.

    >>> find_pairs(np.array([0, 1]), np.array([3, 3]), np.array([0, 0]), np.array([7, 3]), items=8)
    array([ 1, -1])
    """
    if len(in_row) == 0:
        return np.full(len(row), -1, np.int64)
    keys = in_row * np.int64(items) + in_item
    order = np.argsort(keys, kind="stable")
    wanted = row * np.int64(items) + item
    place = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)]
    return np.where(keys[place] == wanted, place, -1)


def numbered(texts: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts in order of appearance, and (Q,) which of them each text is.

    >>> numbered(["b", "a", "b"])
    (['b', 'a'], array([0, 1, 0]))
    """
    numbers: dict[str, int] = {}
    index = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    return list(numbers), index
