"""The pictures of a run's catalogue: where their files are, and their vectors in `embeddings/views`.

A run has them where its settings name an `image_encoder`. Relative paths of `items.images` start from the folder of
the source (for a source of one file, from the folder it is in).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.embed.store import Progress
from onesearch.errors import UserError
from onesearch.settings import Settings

if TYPE_CHECKING:
    from onesearch.embed.image import ImageEncoder  # imports torch, which takes seconds

VIEWS: Final = "embeddings/views"
"""Where in a run the vectors of pictures are."""
_BATCH: Final = 64  # pictures between two marks of progress: a few seconds of one core


def embed_pictures(
    items: pl.DataFrame,
    settings: Settings,
    folder: Path,
    progress: Progress | None = None,
    through: Callable[[ImageEncoder], Any] = lambda encoder: encoder,
) -> None:
    """Encode the pictures of items into a folder, or remove it if the settings name no image encoder.

    Args:
        items: with `item_id` and `images`.
        through: what stands between the encoder and the pictures.

    Raises:
        UserError: no item has a picture, or one is missing or broken (and `on_error` does not say to skip it).
    """
    if settings.image_encoder is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    from onesearch.embed.image import load_image_encoder
    from onesearch.embed.views import embed_views

    if not items["images"].list.len().sum():
        remedy = "give items `images`, or leave out image_encoder"
        raise UserError("no item has a picture", place="items", remedy=remedy)
    embed_views(
        items["images"].to_list(),
        through(load_image_encoder(settings.image_encoder)),
        folder,
        root=_root(settings),
        items=items["item_id"].to_list(),
        on_error=settings.on_error,
        batch=_BATCH,
        progress=progress,
    )


def encoded_pictures(items: pl.DataFrame, settings: Settings, folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """(V) the files of pictures that a folder has vectors of, and (V, D) those, zeros where one was skipped."""
    from onesearch.embed.views import paths_of

    return paths_of(items["images"].to_list(), _root(settings)), np.load(folder / "vectors.npy", mmap_mode="r")


def picture_inputs(run_folder: Path, settings: Settings) -> dict[str, Any]:
    """What vectors of pictures depend on besides the corpus; nothing where a run has none."""
    path = run_folder / "corpus/items.parquet"
    if settings.image_encoder is None or not path.exists():
        return {}
    from onesearch.embed.views import pictures_checksum

    images = pl.read_parquet(path, columns=["images"])["images"].to_list()
    files = pictures_checksum(images, _root(settings))
    return {"image_encoder": settings.image_encoder, "on_error": settings.on_error, "pictures": files}


def _root(settings: Settings) -> Path:
    path = settings.source_path
    if path is None:
        return Path()
    return path.parent if path.is_file() else path
