"""Small corpora and small published files for the tests of `onesearch.corpus`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[dict[str, Any]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets that are no part of the project."""
    folder = Path(os.environ.get("ONESEARCH_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set ONESEARCH_DATA")
    return folder


@pytest.fixture
def good() -> dict[str, Rows]:
    """Rows that satisfy the schema: two users, three items."""
    return {
        "items": [
            {"item_id": "a", "title": "Red shoe", "price": 10.0, "categories": ["shoes", "red"]},
            {"item_id": "b", "title": "Blue shoe"},
            {"item_id": "c", "title": "Green hat", "attributes": [{"name": "size", "value": "m"}]},
        ],
        "events": [
            {"user_id": "u2", "item_id": "c", "timestamp": 50, "event": "click", "query": "hat"},
            {
                "user_id": "u1",
                "item_id": "b",
                "timestamp": 200,
                "event": "purchase",
                "query": "shoe",
                "session_id": "s",
            },
            {"user_id": "u1", "item_id": "a", "timestamp": 100, "event": "purchase", "query": "shoe"},
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Rows]], Path]:
    """Write tables as JSON lines and return their folder."""

    def written(tables: dict[str, Rows]) -> Path:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        for table, rows in tables.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            (folder / f"{table}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    return written
