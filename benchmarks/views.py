"""Views of furniture on disk: PNG files by product, and one table that says what each of them shows.

A folder holds `images/PRODUCT/NN.png` and `views.parquet` (image, product, name, category, azimuth, elevation; in the
order of the products, of the views within). A product's pictures appear all at once, so an interrupted rendering goes
on with the first product that has none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl
from PIL import Image

from benchmarks.furniture import Model, load_mesh
from benchmarks.render import render
from onesearch.errors import UserError
from onesearch.files import atomic_path

VIEWS: Final = tuple(
    [(float(azimuth), 10.0) for azimuth in range(0, 360, 60)]
    + [(float(azimuth), 40.0) for azimuth in range(30, 390, 60)]
)
"""Azimuth and elevation in degrees: two rings, the upper one looks between those of the lower one."""
SIZE: Final = 144
log = logging.getLogger(__name__)


def render_views(models: Sequence[Model], folder: Path) -> pl.DataFrame:
    """Render what is not there yet, and write `views.parquet`; a model that cannot be read is left out, and named.

    Returns:
        one row a view, as in `views.parquet`.
    """
    rows, rendered, started = [], 0, time.process_time()
    for done, model in enumerate(models):
        target = folder / "images" / model.product
        if not target.exists():
            try:
                _render_product(model, target)
            except UserError as error:
                log.warning("left out: %s", error)
                continue
            rendered += 1
            if rendered % 50 == 0:
                seconds = (time.process_time() - started) / rendered
                log.info("%d of %d models, %.2f s of one core each", done + 1, len(models), seconds)
        rows += [
            {
                "image": f"images/{model.product}/{view:02d}.png",
                "product": model.product,
                "name": model.name,
                "category": model.category,
                "azimuth": azimuth,
                "elevation": elevation,
            }
            for view, (azimuth, elevation) in enumerate(VIEWS)
        ]
    views = pl.DataFrame(rows)
    with atomic_path(folder / "views.parquet") as temporary:
        views.write_parquet(temporary)
    return views


def _render_product(model: Model, target: Path) -> None:
    mesh = load_mesh(model)
    with atomic_path(target) as temporary:
        temporary.mkdir()
        for view, (azimuth, elevation) in enumerate(VIEWS):
            Image.fromarray(render(mesh, azimuth, elevation, SIZE)).save(temporary / f"{view:02d}.png")
