"""A table too large for memory: blocks of rows, one after the other, and a place on disk for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Polars hides what the system said inside an error of its own; say it as the system does."""
    try:
        yield
    except pl.exceptions.ComputeError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def regrouped(blocks: Iterable[pl.DataFrame], sizes: Iterable[int]) -> Iterator[pl.DataFrame]:
    """The same rows in blocks of these sizes, each in one piece of memory; what is left over comes as the last block.

    >>> rows = [pl.DataFrame({"row": [1, 2, 3]}), pl.DataFrame({"row": [4]}), pl.DataFrame({"row": [5, 6]})]
    >>> [block["row"].to_list() for block in regrouped(rows, [2, 3])]
    [[1, 2], [3, 4, 5], [6]]
    """
    wanted = iter(sizes)
    size = next(wanted, None)
    held: list[pl.DataFrame] = []
    rows = 0
    for block in blocks:
        held.append(block)
        rows += len(block)
        while size is not None and rows >= size > 0:
            whole = pl.concat(held)
            yield whole.head(size).rechunk()
            held, rows = [whole.tail(rows - size)], rows - size
            size = next(wanted, None)
    if rows:
        yield pl.concat(held).rechunk()


class Spool:
    """Blocks on disk, in the order in which they were put there; each block is one file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self.blocks = self.rows = 0

    def append(self, block: pl.DataFrame) -> None:
        """Put a block behind the others."""
        path = self._path(self.blocks)
        with system_errors(path):
            block.write_parquet(path, compression="lz4", statistics=False)
        self.blocks += 1
        self.rows += len(block)

    def scan(self) -> pl.LazyFrame:
        """All blocks as one table; there must be one at least."""
        return pl.scan_parquet([self._path(number) for number in range(self.blocks)])

    def take(self) -> Iterator[pl.DataFrame]:
        """The blocks in order; each is gone from the disk once it is read."""
        for number in range(self.blocks):
            path = self._path(number)
            block = pl.read_parquet(path)
            path.unlink()
            yield block

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08}.parquet"
