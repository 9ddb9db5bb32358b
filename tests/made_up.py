"""A made-up shop as files, and the options of a training that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

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
