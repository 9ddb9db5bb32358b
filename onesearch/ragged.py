"""Rows of token ids of different lengths as one array, so that prompts are put together without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """n rows one after the other: `ids` (T,) int64, `offsets` (n + 1,) int64 into them.

    >>> rows = Ragged.of([[5, 6], [], [7]])
    >>> rows.take(np.array([2, 0])).rows()
    [[7], [5, 6]]
    >>> Ragged.side_by_side([rows, Ragged.of([[1], [2], [3]])]).rows()
    [[5, 6, 1], [2], [7, 3]]
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each row."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """From lists."""
        flat = np.fromiter((one for row in rows for one in row), np.int64)
        return cls(flat, _offsets(np.fromiter((len(row) for row in rows), np.int64, len(rows))))

    @classmethod
    def full(cls, table: NDArray[np.integer]) -> Ragged:
        """From (n, L): rows of one length."""
        rows, width = table.shape
        return cls(table.astype(np.int64).ravel(), np.arange(rows + 1, dtype=np.int64) * width)

    @classmethod
    def repeated(cls, row: Sequence[int], times: int) -> Ragged:
        """The same row over and over."""
        return cls.full(np.tile(np.array(row, np.int64), (times, 1)).reshape(times, len(row)))

    @classmethod
    def stack(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of the first part, then those of the next."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
        return cls(np.concatenate([np.zeros(0, np.int64), *(part.ids for part in parts)]), _offsets(lengths))

    @classmethod
    def side_by_side(cls, parts: Sequence[Ragged]) -> Ragged:
        """Row i of every part, one after the other; all parts have n rows."""
        number, rows = len(parts), len(parts[0])
        order = (np.arange(number) * rows + np.arange(rows)[:, None]).ravel()
        return cls.stack(parts).take(order).merged(np.repeat(np.arange(rows), number), rows)

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """Some of the rows, in this order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        place = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.ids[place], offsets)

    def merged(self, row: NDArray[np.integer], rows: int) -> Ragged:
        """(n,) ascending numbers of new rows -> that many rows, each made of those that have its number."""
        lengths = np.bincount(row, self.lengths, rows).astype(np.int64)
        return Ragged(self.ids, _offsets(lengths))

    def cut(self, most: int) -> Ragged:
        """The first `most` tokens of each row."""
        kept = np.arange(len(self.ids)) - np.repeat(self.offsets[:-1], self.lengths) < most
        return Ragged(self.ids[kept], _offsets(np.minimum(self.lengths, most)))

    def padded(self, value: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(n, T) ids with `value` behind the shorter rows, and (n, T) where there is a token; T is at least 1."""
        filled = np.arange(max(int(self.lengths.max(initial=0)), 1)) < self.lengths[:, None]
        table = np.full(filled.shape, value, np.int64)
        table[filled] = self.ids
        return table, filled

    def rows(self) -> list[list[int]]:
        """As lists."""
        return [self.ids[start:end].tolist() for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]


class TokenColumn:
    """The tokens of a column of texts, each text tokenised when it is first asked for.

    Args:
        texts: of n rows. encode: texts -> their tokens.
    """

    def __init__(self, texts: Sequence[str], encode: Callable[[Sequence[str]], Ragged]) -> None:
        self._texts, self._encode = texts, encode
        self._place = np.full(len(texts), -1, np.int64)
        self._store = Ragged.of([])

    def __getitem__(self, rows: NDArray[np.integer]) -> Ragged:
        """The tokens of some rows."""
        new = np.unique(rows[self._place[rows] < 0])
        if len(new):
            self._place[new] = len(self._store) + np.arange(len(new))
            self._store = Ragged.stack([self._store, self._encode([self._texts[row] for row in new])])
        return self._store.take(self._place[rows])


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
