"""The vectors of all pictures of a catalogue on disk: one row a picture ("view"), and which rows are of which item.

Beside what `onesearch/embed/store.py` keeps, a folder holds `offsets.npy` (N + 1,): the rows of item i are
`offsets[i]:offsets[i + 1]`; and `stamps.npy` (V, 2): size and time of every file, so that a picture which was changed
after it was encoded makes everything start anew, while mending one that stopped the run does not.

A picture that cannot be read stops the work, with item and file; or it is skipped, which leaves it a row of zeros in
`vectors.npy` and a line in `rejects.jsonl`. Then `rows.npy` lists the other rows, the only ones that `Views` has and
that offsets count.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.tables import OnError
from onesearch.embed.image import ImageEncoder, Picture, opened
from onesearch.embed.store import Progress, embed_catalogue
from onesearch.embed.text import unit_rows
from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json

_ROWS = 16_384
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Views:
    """V views of N items.

    Attributes:
        vectors: (V, D) float32, read-only.
        offsets: (N + 1,) int64; the views of item i are the rows `offsets[i]` to `offsets[i + 1]`.
        encoder: the name of what made them.
    """

    vectors: NDArray[np.float32]
    offsets: NDArray[np.int64]
    encoder: str = ""

    @property
    def item(self) -> NDArray[np.int64]:
        """(V,) the item each view shows."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def item_vectors(self) -> NDArray[np.float32]:
        """(N, D) unit vectors: the mean of an item's views; zeros where it has none."""
        vectors = np.zeros((len(self.offsets) - 1, self.vectors.shape[1]), np.float32)
        seen = np.flatnonzero(np.diff(self.offsets))  # reduceat would give an item without views the next one's
        if len(seen):
            vectors[seen] = np.add.reduceat(self.vectors, self.offsets[:-1][seen], axis=0)
        return unit_rows(vectors)


def embed_views(
    images: Sequence[Sequence[str] | None],
    encoder: ImageEncoder,
    folder: Path | str,
    *,
    root: Path | str = "",
    items: Sequence[str] | None = None,
    on_error: OnError = "stop",
    batch: int = 256,
    progress: Progress | None = None,
) -> Views:
    """Encode the pictures of N items into a memory map, the same file once.

    Work done before an interruption is kept, as long as the paths, the files before that point and the encoder are the
    same. Before the first one is encoded all files are looked for, unless missing ones are to be skipped.

    Args:
        images: the column `images` of the items: files of each item, none or null where it has no picture.
        encoder: what reads them.
        folder: where the vectors go.
        root: the folder that relative paths start from.
        items: N ids, to say whose picture is wrong; by default their numbers.
        on_error: "stop" at a picture that is missing or cannot be read, or "skip" it.
        batch: pictures between two marks of how far it got.
        progress: told after each of them.

    Raises:
        UserError: a file is missing or no picture, or the disk is full.
    """
    folder = Path(folder)
    files = _Files(images, Path(root), items)
    stamps = files.stamps(on_error)
    if _changed(folder, stamps):
        (folder / "vectors.json").unlink()
    _save(folder / "stamps.npy", stamps)
    for name in ("rows.npy", "rejects.jsonl"):
        (folder / name).unlink(missing_ok=True)
    vectors = embed_catalogue(files.paths, _Reader(encoder, files, on_error), folder, batch=batch, progress=progress)
    _save(folder / "offsets.npy", _offsets(folder, files, vectors, on_error))
    return load_views(folder)


def load_views(folder: Path | str) -> Views:
    """Read what `embed_views` wrote; a memory map, or a copy in memory where pictures were skipped.

    Raises:
        UserError: it is not there, or not whole.
    """
    folder = Path(folder)
    remedy = "encode the pictures: `image_encoder` in the settings, or `onesearch embed --image-encoder`"
    try:
        vectors, offsets = np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "offsets.npy")
        rows = np.load(folder / "rows.npy") if (folder / "rows.npy").exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"no vectors of pictures here: {error}", place=folder, remedy=remedy) from error
    views = Views(
        vectors if rows is None else vectors[rows], offsets, str(read_json(folder / "vectors.json")["encoder"])
    )
    if offsets[-1] != len(views.vectors):
        problem = f"{len(views.vectors)} vectors, but the items have {offsets[-1]} pictures"
        raise UserError(problem, place=folder, remedy="encode the pictures again")
    return views


def pictures_checksum(images: Sequence[Sequence[str] | None], root: Path | str) -> str:
    """What says that the files of pictures are the same: their sizes and times of change, in the items' order."""
    files = _Files(images, Path(root), None)
    return hashlib.sha256(files.stamps("skip").tobytes() + files.offsets.tobytes()).hexdigest()


def paths_of(images: Sequence[Sequence[str] | None], root: Path | str) -> list[str]:
    """(V) the files of N items, relative paths from `root`."""
    return [str(Path(root, image)) if "://" not in image else image for views in images for image in views or ()]


class _Files:
    """The V files that N items name."""

    def __init__(self, images: Sequence[Sequence[str] | None], root: Path, items: Sequence[str] | None) -> None:
        self.paths = paths_of(images, root)
        self.offsets = np.cumsum([0, *(len(views or ()) for views in images)], dtype=np.int64)
        self._items = items

    def owner(self, row: int) -> str:
        """The item that a file is named by."""
        item = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return str(item if self._items is None else self._items[item])

    def place(self, row: int) -> str:
        """What a file is called in an error."""
        return f"item {self.owner(row)}: {self.paths[row]}"

    def stamps(self, on_error: OnError) -> NDArray[np.int64]:
        """(V, 2) size in bytes and time of change in nanoseconds; zeros for missing files that are skipped."""
        stamps = np.zeros((len(self.paths), 2), np.int64)
        for row, path in enumerate(self.paths):
            try:
                status = Path(path).stat()
            except OSError as error:
                if on_error == "skip":
                    continue
                place = self.place(row)
                if "://" in path:
                    remedy = "download it and give its path"
                    raise UserError("a picture must be a file", place=place, remedy=remedy) from error
                remedy = "mend the path in the item's images, or skip such pictures with on_error: skip"
                raise UserError((error.strerror or "unreadable").lower(), place=place, remedy=remedy) from error
            stamps[row] = status.st_size, status.st_mtime_ns
        return stamps


class _Reader:
    """An encoder that says whose picture it cannot read, or gives zeros for it."""

    def __init__(self, encoder: ImageEncoder, files: _Files, on_error: OnError) -> None:
        self.name, self.dimension = encoder.name, encoder.dimension
        self._encoder, self._files, self._on_error = encoder, files, on_error

    def encode(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        try:
            return self._encoder.encode(images)
        except UserError as error:
            if str(error.place) not in self._files.paths:
                raise
            if self._on_error == "stop":
                place = self._files.place(self._files.paths.index(str(error.place)))
                raise UserError(error.problem, place=place, remedy=error.remedy) from error
        vectors = np.zeros((len(images), self.dimension), np.float32)
        readable = [row for row, image in enumerate(images) if _problem(image) is None]
        if readable:
            vectors[readable] = self._encoder.encode([images[row] for row in readable])
        return vectors


def _problem(image: Picture) -> str | None:
    try:
        opened(image)
    except UserError as error:
        return error.problem
    return None


def _offsets(folder: Path, files: _Files, vectors: NDArray[np.float32], on_error: OnError) -> NDArray[np.int64]:
    """(N + 1,) the offsets of the pictures that were read; if some were not, which they are is written too.

    Also where pictures are not to be skipped: those of an earlier attempt that skipped them are zeros.
    """
    blocks = [vectors[start : start + _ROWS].any(axis=1) for start in range(0, len(vectors), _ROWS)]
    read = np.concatenate([np.zeros(0, bool), *blocks])
    skipped = np.flatnonzero(~read).tolist()
    if not skipped:
        return files.offsets
    reasons = [_problem(files.paths[row]) or "the encoder says nothing of this picture" for row in skipped]
    if on_error == "stop":
        remedy = "mend the item's images, or skip such pictures with on_error: skip"
        raise UserError(reasons[0], place=files.place(skipped[0]), remedy=remedy)
    if len(skipped) == len(read):
        problem = f"none of the {len(read):,} pictures could be read, the first one: {reasons[0]}"
        raise UserError(problem, place=files.place(0), remedy="mend the items' images")
    owners, paths = [files.owner(row) for row in skipped], [files.paths[row] for row in skipped]
    with atomic_path(folder / "rejects.jsonl") as temporary:
        pl.DataFrame({"item_id": owners, "image": paths, "reason": reasons}).write_ndjson(temporary)
    log.warning("%s pictures skipped: see %s", f"{len(skipped):,}", folder / "rejects.jsonl")
    _save(folder / "rows.npy", np.flatnonzero(read))
    return np.concatenate([[0], np.cumsum(read)])[files.offsets]


def _changed(folder: Path, stamps: NDArray[np.int64]) -> bool:
    """Whether one of the files that are encoded already is another one now."""
    state = folder / "vectors.json"
    if not state.exists():
        return False
    try:
        before, done = np.load(folder / "stamps.npy"), int(read_json(state)["done"])
    except (OSError, ValueError, KeyError, TypeError):
        return True
    return before.shape != stamps.shape or not np.array_equal(before[:done], stamps[:done])


def _save(path: Path, array: NDArray[np.int64]) -> None:
    with atomic_path(path) as temporary:
        np.save(temporary, array)
