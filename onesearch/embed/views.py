"""The vectors of all pictures of a catalogue on disk: one row a picture ("view"), and which rows are of which item.

Beside what `onesearch/embed/store.py` keeps, a folder holds `offsets.npy` (N + 1,): the rows of item i are
`offsets[i]:offsets[i + 1]`; and `stamps.npy` (V, 2): size and time of every file, so that a picture which was changed
after it was encoded makes everything start anew, while mending one that stopped the run does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onesearch.embed.image import ImageEncoder
from onesearch.embed.store import Progress, embed_catalogue
from onesearch.embed.text import unit_rows
from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json


@dataclass(frozen=True)
class Views:
    """V views of N items.

    Attributes:
        vectors: (V, D) float32, read-only.
        offsets: (N + 1,) int64; the views of item i are the rows `offsets[i]` to `offsets[i + 1]`.
    """

    vectors: NDArray[np.float32]
    offsets: NDArray[np.int64]

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
    batch: int = 256,
    progress: Progress | None = None,
) -> Views:
    """Encode the pictures of N items into a memory map, the same file once.

    Work done before an interruption is kept, as long as the paths, the files before that point and the encoder are the
    same. All files are looked for before the first one is encoded.

    Args:
        images: the column `images` of the items: files of each item, none or null where it has no picture.
        encoder: what reads them.
        folder: where the vectors go.
        root: the folder that relative paths start from.
        batch: pictures between two marks of how far it got.
        progress: told after each of them.

    Raises:
        UserError: a file is missing or no picture, or the disk is full.
    """
    folder = Path(folder)
    paths = [str(Path(root, image)) if "://" not in image else image for views in images for image in views or ()]
    offsets = np.cumsum([0, *(len(views or ()) for views in images)], dtype=np.int64)
    stamps = _stamps(paths)
    if _changed(folder, stamps):
        (folder / "vectors.json").unlink()
    _save(folder / "stamps.npy", stamps)
    vectors = embed_catalogue(paths, encoder, folder, batch=batch, progress=progress)
    _save(folder / "offsets.npy", offsets)
    return Views(vectors, offsets)


def load_views(folder: Path | str) -> Views:
    """Read what `embed_views` wrote.

    Raises:
        UserError: it is not there, or not whole.
    """
    folder = Path(folder)
    try:
        views = Views(np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "offsets.npy"))
    except (OSError, ValueError) as error:
        raise UserError(f"no vectors of pictures here: {error}", place=folder, remedy="encode the pictures") from error
    if views.offsets[-1] != len(views.vectors):
        problem = f"{len(views.vectors)} vectors, but the items have {views.offsets[-1]} pictures"
        raise UserError(problem, place=folder, remedy="encode the pictures again")
    return views


def _stamps(paths: Sequence[str]) -> NDArray[np.int64]:
    """(V, 2) size in bytes and time of change in nanoseconds."""
    stamps = np.zeros((len(paths), 2), np.int64)
    for row, path in enumerate(paths):
        if "://" in path:
            remedy = "download it and give its path"
            raise UserError("a picture must be a file", place="image", value=path, remedy=remedy)
        try:
            status = Path(path).stat()
        except OSError as error:
            problem = f"no such file: {error.strerror}"
            raise UserError(problem, place=path, remedy="mend the path in the item's images") from error
        stamps[row] = status.st_size, status.st_mtime_ns
    return stamps


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
