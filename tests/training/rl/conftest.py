"""Runs with a trained generator, and with a tiny language model in place of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_backbones import write_backbone

from training import language

STAGES = [{"name": "one", "steps": 3, "tasks": {"personalised": 1}}]


@pytest.fixture
def new_run(trained_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of the run with a trained generator, under this name."""
    return lambda name: Path(shutil.copytree(trained_run, tmp_path / name))


@pytest.fixture(scope="session")
def language_run(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run with a language model of a family, hardly trained."""
    base = tmp_path_factory.mktemp("language")

    def run(family: str) -> Path:
        folder = base / family / "run"
        if not folder.exists():
            shutil.copytree(quantized_run, folder)
            backbone = write_backbone(base / family / "backbone", family)
            options = {
                "run": str(folder),
                "backbone": str(backbone),
                "stages": STAGES,
                "items": 3,
                "searches": 1,
                "valid_requests": 20,
                "valid_searches": 0,
                "per_device_train_batch_size": 8,
                "eval_strategy": "no",
                "save_strategy": "no",
            }
            path = base / family / "language.yaml"
            path.write_text(json.dumps(options))
            language.train(*language.parse(["--config", str(path), "--stage", "sft"]))
        return folder

    return run
