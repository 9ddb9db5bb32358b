import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

pytest.importorskip("trimesh", reason="the package trimesh is not installed")

from furniture_shop import library

from benchmarks.furniture import find_models, load_mesh
from benchmarks.views import SIZE, VIEWS, render_views
from onesearch.errors import UserError


def test_the_catalogue_names_the_models(tmp_path: Path) -> None:
    models = find_models(library(tmp_path / "models"))
    assert [(model.product, model.name, model.category, model.path) for model in models] == [
        ("shop-box", "Red box", "Boxes", "shop/box/box.obj"),
        ("shop-card", "Card", "Paper", "shop/card/card.obj"),
    ]


def test_a_mesh_has_its_triangles_colours_and_texture(tmp_path: Path) -> None:
    box, card = (load_mesh(model) for model in find_models(library(tmp_path / "models")))
    assert box.corners.shape == (12, 3, 3)
    assert box.corners.reshape(-1, 3).max(axis=0).tolist() == [2, 1, 3]
    areas = np.linalg.norm(np.cross(*(box.corners[:, i] - box.corners[:, 0] for i in (1, 2))), axis=1) / 2
    red = int(np.flatnonzero(box.colours[:, 0] == 1)[0])
    assert areas[box.material == red].sum() == pytest.approx(2 + 2 + 6)
    assert areas[box.material != red].sum() == pytest.approx(6 + 3 + 3)
    texture = card.textures[0]
    assert texture is not None
    assert texture.shape == (128, 256, 3)  # no larger than a view has room for
    assert texture[0, 0].tolist() == [0, 1, 0]
    upper = card.corners[..., 1] == 1
    assert (card.uv[upper][:, 1] == 1).all()
    assert (card.uv[~upper][:, 1] == 0).all()


def test_views_are_rendered_once_and_listed(tmp_path: Path) -> None:
    models = find_models(library(tmp_path / "models"))
    views = render_views(models, tmp_path / "out")
    assert len(views) == 2 * len(VIEWS)
    assert pl.read_parquet(tmp_path / "out" / "views.parquet").equals(views)
    assert views["product"].to_list() == ["shop-box"] * 12 + ["shop-card"] * 12
    files = [tmp_path / "out" / image for image in views["image"]]
    first = [file.stat().st_mtime_ns for file in files]
    with Image.open(files[0]) as picture:
        assert picture.size == (SIZE, SIZE)
        assert len(np.unique(np.asarray(picture))) > 2
    for file in files[12:]:
        file.unlink()
    files[12].parent.rmdir()
    assert render_views(models, tmp_path / "out").equals(views)
    assert [file.stat().st_mtime_ns for file in files[:12]] == first[:12]
    assert all(file.exists() for file in files)


def test_a_model_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = find_models(library(tmp_path / "models", **{"shop/box/box.obj": "v 0 0 0\n"}))
    with caplog.at_level(logging.WARNING):
        views = render_views(models, tmp_path / "out")
    assert views["product"].unique().to_list() == ["shop-card"]
    assert "shop/box/box.obj" in caplog.text


def test_what_is_no_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="apt-get install sweethome3d-furniture"):
        find_models(tmp_path)
    (tmp_path / "broken.sh3f").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match="not a furniture library"):
        find_models(tmp_path)
    with pytest.raises(UserError, match="a model is missing"):
        find_models(
            library(
                tmp_path / "models", **{"PluginFurnitureCatalog.properties": "name#1=x\nmodel#1=/shop/absent.obj\n"}
            )
        )
