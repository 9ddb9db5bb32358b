"""The vectors of a catalogue on disk: a memory map that is filled batch by batch and goes on after an interruption.

A folder holds `vectors.npy` (N, D) float32, which appears only when it is whole, and `vectors.json`, which tells whose
texts and which encoder it is of, and how many rows are done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.embed.text import TextEncoder
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


def embed_catalogue(
    texts: Sequence[str],
    encoder: TextEncoder,
    folder: Path | str,
    *,
    batch: int = 8192,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Encode N texts into a memory map, identical texts once.

    Work done before an interruption is kept, and a finished catalogue is not encoded again, as long as the texts, the
    encoder's name and what the encoder makes of the first text are the same; otherwise everything starts anew.

    Returns:
        (N, D) read-only memory map of `folder/vectors.npy`.

    Raises:
        UserError: there is no room on the disk; nothing is left behind.
    """
    folder = Path(folder)
    whole, partial, state_file = folder / "vectors.npy", folder / "vectors.partial.npy", folder / "vectors.json"
    shape = (len(texts), encoder.dimension)
    state = {"encoder": encoder.name, "rows": shape[0], "dimension": shape[1], "texts": _checksum(texts), "done": 0}
    done = _rows_done(state, state_file, whole if whole.exists() else partial, texts, encoder)
    if done < 0:
        done = 0
        whole.unlink(missing_ok=True)
        _allocate(partial, shape)
        write_json(state_file, state)
    if whole.exists():
        _report(progress, len(texts), len(texts))
        return np.load(whole, mmap_mode="r")

    first = _first_occurrences(texts)
    vectors = np.load(partial, mmap_mode="r+")
    _report(progress, done, len(texts))
    while done < len(texts):
        end = min(done + batch, len(texts))
        rows = np.arange(done, end)
        new = rows[first[done:end] == rows]
        repeated = rows[first[done:end] < rows]
        vectors[new] = encoder.encode([texts[i] for i in new])
        vectors[repeated] = vectors[first[repeated]]
        vectors.flush()
        done = end
        write_json(state_file, {**state, "done": done})
        _report(progress, done, len(texts))
    del vectors
    partial.replace(whole)
    return np.load(whole, mmap_mode="r")


def stored_vectors(folder: Path, items: int) -> NDArray[np.float32]:
    """(N, D) read-only memory map of a folder's finished vectors.

    Raises:
        UserError: there are none yet, or they are of another number of items.
    """
    path = folder / "vectors.npy"
    if not path.exists():
        raise UserError("no vectors of the catalogue", place=path, remedy="run `onesearch embed` first")
    vectors: NDArray[np.float32] = np.load(path, mmap_mode="r")
    if len(vectors) != items:
        raise UserError(
            f"{len(vectors):,} vectors for {items:,} items", place=path, remedy="run `onesearch embed` again"
        )
    return vectors


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)


def _rows_done(
    state: dict[str, Any], state_file: Path, vectors_file: Path, texts: Sequence[str], encoder: TextEncoder
) -> int:
    """How many rows an earlier run left that this run would write the same; -1 where it must start anew."""
    if not (state_file.exists() and vectors_file.exists()):
        return -1
    found = read_json(state_file)
    if not isinstance(found, dict) or {**found, "done": 0} != state:
        return -1
    done = int(found["done"])
    if done and not np.allclose(np.load(vectors_file, mmap_mode="r")[0], encoder.encode(texts[:1])[0], atol=1e-3):
        return -1  # other weights under the same name
    return done


def _allocate(path: Path, shape: tuple[int, int]) -> None:
    """An empty .npy file whose room is taken now: writing to a map on a full disk would kill the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if 0 in shape:  # a map cannot be empty
            np.save(path, np.zeros(shape, np.float32))
            return
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        size = 4e-6 * shape[0] * shape[1]
        remedy = f"free {size:,.1f} MB and start again"
        raise UserError("the disk is full, nothing was written", place=path, remedy=remedy) from error


def _first_occurrences(texts: Sequence[str]) -> NDArray[np.int64]:
    """(N,) the first row that has the text of each row."""
    if not len(texts):
        return np.zeros(0, np.int64)
    rows = pl.DataFrame({"text": list(texts)}).with_row_index("row")
    return rows.select(pl.col("row").min().over("text"))["row"].to_numpy().astype(np.int64)


def _checksum(texts: Sequence[str]) -> str:
    """SHA-256 of the texts in their order."""
    digest = hashlib.sha256()
    for start in range(0, len(texts), 8192):
        digest.update(json.dumps(list(texts[start : start + 8192])).encode())
    return digest.hexdigest()
