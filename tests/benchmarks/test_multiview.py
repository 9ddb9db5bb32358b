import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

pytest.importorskip("trimesh", reason="the package trimesh is not installed")

from furniture_shop import library
from vision_models import tiny_vit

from benchmarks.multiview import main
from onesearch.embed.image import load_image_encoder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["multiview", *map(str, arguments)])
    main()


def test_models_become_rows_of_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    models, out, encoder = library(tmp_path / "models"), tmp_path / "out", tiny_vit(tmp_path / "vit")
    run(monkeypatch, "--models", models, "--out", out, "--encoder", encoder)
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["products"], summary["views"], summary["dimension"]) == (2, 24, 32)
    views, vectors = pl.read_parquet(out / "views.parquet"), np.load(out / "vectors.npy")
    last = load_image_encoder(encoder).encode([out / views["image"][-1]])
    np.testing.assert_allclose(vectors[-1:], last, atol=1e-5)
    assert np.load(out / "offsets.npy").tolist() == [0, 12, 24]


def test_mistakes_are_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="apt-get install"):
        run(monkeypatch, "--models", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(SystemExit):
        run(monkeypatch, "--out", tmp_path / "out")
