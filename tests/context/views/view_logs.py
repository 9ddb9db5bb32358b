"""A made-up log with clicks, purchases, impressions, searches, sessions and users of whom something is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onesearch.context.history import HistorySlots
from onesearch.corpus import Corpus, sources

DAY = 86_400
ITEMS = 12
KNOWN = [
    [{"name": "age", "value": "65+"}, {"name": "size", "value": "2"}],
    [{"name": "age", "value": "65+"}, {"name": "size", "value": "5"}],
    [{"name": "size", "value": "2"}],
    [],
]
"""Attributes of the users u0 to u3."""

NO_SLOTS = HistorySlots(*(np.zeros((0, 0), np.int32) for _ in range(4)))
Event = tuple[int, int, str, int, str | None, str | None]
MakeLog = Callable[..., Corpus]


def random_events(size: int, seed: int, moment: int) -> list[Event]:
    """Events `(user, item, kind, time, query, session)`; times are multiples of `moment`."""
    rng = np.random.default_rng(seed)
    kinds = ("impression", "click", "cart", "purchase")
    events: list[Event] = []
    for _ in range(size):
        user, time = int(rng.choice(4, p=(0.55, 0.25, 0.15, 0.05))), int(rng.integers(0, 90))
        query = f"query {rng.integers(6)}" if rng.random() < 0.7 else None
        session = f"{user}-{time // 2}" if rng.random() < 0.6 else None
        kind = kinds[rng.choice(4, p=(0.1, 0.3, 0.1, 0.5))]
        events.append((user, int(rng.integers(ITEMS)), kind, time * moment, query, session))
    return events


def write_log(folder: Path, events: list[Event], clock: bool, known: bool) -> Corpus:
    """Write events as a log, and read it."""
    time_of = "timestamp" if clock else "position"
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{item}", "event": kind, time_of: time}
        | ({"query": query} if query else {})
        | ({"session_id": session} if session else {})
        | {"place": f"store {(time + item) % 3}", "device": "phone" if item % 2 else None}
        for user, item, kind, time, query, session in events
    ]
    tables = {
        "items": [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(ITEMS)],
        "users": [{"user_id": f"u{n}", **({"attributes": its} if known else {})} for n, its in enumerate(KNOWN)],
        "events": rows,
    }
    (folder / "raw").mkdir(parents=True)
    for table, lines in tables.items():
        (folder / "raw" / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return sources.prepare("jsonl", folder / "corpus", path=folder / "raw")
