"""A made-up log that says what was shown, clicked and bought, with graded relevance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from onesearch.corpus import Corpus, sources

ITEMS = ("red soap", "blue soap", "red brush", "blue brush", "green towel", "white towel")
CATEGORIES = (["bath", "soap"], ["bath", "soap"], ["bath", "brush"], ["bath", "brush"], ["linen"], [])


def write_shows(folder: Path, events: list[dict[str, object]]) -> Corpus:
    """A corpus of these events over the six items."""
    items = [
        {"item_id": f"i{n}", "title": title, "categories": path, "price": 1.0 + n}
        for n, (title, path) in enumerate(zip(ITEMS, CATEGORIES, strict=True))
    ]
    relevance = [
        {"query": "soap", "item_id": "i0", "grade": 3},
        {"query": "soap", "item_id": "i2", "grade": 1},
        {"query": "brush", "item_id": "i2", "grade": 3},
        {"query": "brush", "item_id": "i4", "grade": 0},
    ]
    (folder / "raw").mkdir(parents=True)
    for table, rows in (("items", items), ("events", events), ("relevance", relevance)):
        (folder / "raw" / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sources.prepare("jsonl", folder / "corpus", path=folder / "raw")


def event(user: str, item: int, kind: str, time: int, query: str | None, session: str) -> dict[str, object]:
    row: dict[str, object] = {"user_id": user, "item_id": f"i{item}", "event": kind, "timestamp": time}
    return row | {"session_id": session} | ({"query": query} if query else {})


def one_visit() -> list[dict[str, object]]:
    """ann searches "soap" and buys a red one of two shown; later in the visit she buys a blue one without a search."""
    return [
        event("ann", 4, "purchase", 100, None, "0"),
        event("ann", 0, "impression", 1000, "soap", "1"),
        event("ann", 2, "impression", 1000, "soap", "1"),
        event("ann", 3, "impression", 1000, "soap", "1"),
        event("ann", 2, "click", 1001, "soap", "1"),
        event("ann", 0, "click", 1002, "soap", "1"),
        event("ann", 0, "purchase", 1003, "soap", "1"),
        event("ann", 1, "purchase", 1100, None, "1"),
        event("bob", 0, "impression", 2000, "brush", "2"),
    ]


def random_shows(searches: int, seed: int = 0) -> list[dict[str, object]]:
    """Users who click what the query names and buy what they bought before."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(searches):
        user, query = f"u{rng.integers(8)}", ("soap", "brush", "towel")[rng.integers(3)]
        time = 1_000_000 + number * 5_000
        shown = rng.permutation(len(ITEMS))[:4]
        for item in shown.tolist():
            rows.append(event(user, item, "impression", time, query, str(number)))
            if query in ITEMS[item] and rng.random() < 0.8:
                rows.append(event(user, item, "click", time + 1, query, str(number)))
                if (item + int(user[1:])) % 2 == 0:
                    rows.append(event(user, item, "purchase", time + 2, query, str(number)))
    return rows
