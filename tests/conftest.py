"""A made-up shop, and a run over it with a small trained generator."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import BRANDS, KINDS, SIZES, TINY, write_shop, write_yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is on a hub, and not to find it takes half a minute


def pytest_configure() -> None:
    """Beside other test processes PyTorch works with one thread."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The corpus of the made-up shop."""
    from onesearch.corpus import sources

    base = tmp_path_factory.mktemp("corpus")
    return sources.prepare("jsonl", base / "corpus", path=write_shop(base / "log"))


@pytest.fixture(scope="session")
def quantized_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the made-up shop with semantic IDs and no model; do not write into it."""
    if find_spec("wordllama") is None:
        pytest.skip("the package wordllama is not installed")
    from onesearch.pipeline import STEPS
    from onesearch.run import Run
    from onesearch.settings import Settings

    base = tmp_path_factory.mktemp("shop")
    settings = Settings(
        source="jsonl",
        path=str(write_shop(base / "log")),
        level_sizes=(6, 6),
        last_level=8,
        valid_requests=40,
        test_requests=40,
        sft=str(write_yaml(base / "sft.yaml", TINY)),
        reinforce=False,
        processes=1,
    )
    run = Run.create(base / "run", settings)
    for name in ("prepare", "embed", "quantize"):
        STEPS[name].do(run, lambda done, total: None)
    return run.folder


@pytest.fixture
def new_run(quantized_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of the run with semantic IDs, under this name."""
    import shutil

    def copied(name: str) -> Path:
        return Path(shutil.copytree(quantized_run, tmp_path / name))

    return copied


@pytest.fixture(scope="session")
def trained_run(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the made-up shop whose generator is trained; do not write into it."""
    import shutil

    from onesearch.pipeline import STEPS
    from onesearch.run import Run

    folder = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(quantized_run, folder)
    STEPS["train"].do(Run.open(folder), lambda done, total: None)
    return folder


@pytest.fixture(scope="session")
def word_encoder() -> Any:
    """A text encoder with a random vector for each word of the made-up shop; other words have none."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    from onesearch.embed.static import StaticEncoder

    words = {word: place for place, word in enumerate(sorted({*" ".join(KINDS).split(), *BRANDS, *SIZES}))}
    tokenizer = Tokenizer(WordLevel({**words, "?": len(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    table = np.random.default_rng(0).standard_normal((len(words) + 1, 24)).astype(np.float32)
    table[-1] = 0
    return StaticEncoder("words", tokenizer, table)
