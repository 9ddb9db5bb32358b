"""A made-up shop, and a run over it with a small trained generator."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = ("cold cereal", "ground coffee", "dish soap", "dog food", "potato chips", "orange juice")
BRANDS = ("acme", "bluebird", "cedar", "dune")
SIZES = ("small", "large")
DAY = 86_400

TINY = {
    "width": 32,
    "layers": [1, 1],
    "heads": 2,
    "feed_forward": 32,
    "slots": 6,
    "recent": 1.0,
    "valid_requests": 40,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "num_train_epochs": 2,
    "warmup_steps": 5,
    "learning_rate": 5.0e-3,
    "logging_steps": 5,
    "eval_steps": 20,
    "save_steps": 20,
}
"""Options of a training that takes a few seconds."""


def write_yaml(path: Path, options: dict[str, Any]) -> Path:
    path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in options.items()), encoding="utf-8")
    return path


def write_shop(folder: Path, users: int = 30, baskets: int = 12, seed: int = 0) -> Path:
    """Items and events as JSON lines: everybody has a favourite brand of each kind, and mostly buys that."""
    rng = np.random.default_rng(seed)
    goods = [(kind, brand, size) for kind in KINDS for brand in BRANDS for size in SIZES]
    items = [
        {"item_id": f"i{n}", "title": f"{kind} {size}", "brand": brand, "price": 1.0 + n}
        for n, (kind, brand, size) in enumerate(goods)
    ]
    events = []
    for user in range(users):
        favourite = rng.integers(0, len(BRANDS), len(KINDS))
        for basket in range(baskets):
            time = int(1_700_000_000 + (basket + rng.random()) * 20 * DAY)
            for kind in rng.choice(len(KINDS), 3, replace=False):
                brand = favourite[kind] if rng.random() < 0.8 else rng.integers(0, len(BRANDS))
                item = (kind * len(BRANDS) + brand) * len(SIZES) + rng.integers(0, len(SIZES))
                query = KINDS[kind] if rng.random() < 0.5 else f"{KINDS[kind]} {SIZES[item % len(SIZES)]}"
                events.append(
                    {
                        "user_id": f"u{user}",
                        "item_id": f"i{item}",
                        "timestamp": time,
                        "event": "purchase",
                        "query": query,
                        "session_id": f"u{user}-{basket}",
                    }
                )
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in (("items", items), ("events", events)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


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
