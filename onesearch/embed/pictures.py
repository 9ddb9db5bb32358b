"""The pictures of a run's catalogue: where their files are, and their vectors in `embeddings/views`.

A run has them where its settings name an `image_encoder`. Relative paths of `items.images` start from the folder of
the source (for a source of one file, from the folder it is in).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

import polars as pl

from onesearch.embed.store import Progress
from onesearch.errors import UserError
from onesearch.settings import Settings

VIEWS: Final = "embeddings/views"
"""Where in a run the vectors of pictures are."""
_BATCH: Final = 64  # pictures between two marks of progress: a few seconds of one core


def embed_pictures(run_folder: Path, settings: Settings, progress: Progress | None = None) -> None:
    """Encode the pictures of a run's items, or remove their vectors if the settings name no image encoder.

    Raises:
        UserError: no item has a picture, or one is missing or broken (and `on_error` does not say to skip it).
    """
    folder = run_folder / VIEWS
    if settings.image_encoder is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    from onesearch.embed.image import load_image_encoder
    from onesearch.embed.views import embed_views

    items = _items(run_folder)
    if not items["images"].list.len().sum():
        remedy = "give items `images`, or leave out image_encoder"
        raise UserError("no item has a picture", place=run_folder / "corpus", remedy=remedy)
    embed_views(
        items["images"].to_list(),
        load_image_encoder(settings.image_encoder),
        folder,
        root=_root(settings),
        items=items["item_id"].to_list(),
        on_error=settings.on_error,
        batch=_BATCH,
        progress=progress,
    )


def picture_inputs(run_folder: Path, settings: Settings) -> dict[str, Any]:
    """What vectors of pictures depend on besides the corpus; nothing where a run has none."""
    if settings.image_encoder is None or not (run_folder / "corpus/items.parquet").exists():
        return {}
    from onesearch.embed.views import pictures_checksum

    files = pictures_checksum(_items(run_folder)["images"].to_list(), _root(settings))
    return {"image_encoder": settings.image_encoder, "on_error": settings.on_error, "pictures": files}


def _items(run_folder: Path) -> pl.DataFrame:
    return pl.read_parquet(run_folder / "corpus/items.parquet", columns=["item_id", "images"])


def _root(settings: Settings) -> Path:
    if settings.path is None:
        return Path()
    path = Path(settings.path)
    return path.parent if path.is_file() else path
