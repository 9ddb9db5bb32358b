"""Logs for the tests of views."""

from __future__ import annotations

from pathlib import Path

import pytest
from view_logs import DAY, Event, MakeLog, random_events, write_log

from onesearch.corpus import Corpus


@pytest.fixture
def make_log(tmp_path: Path) -> MakeLog:
    """Make the corpus of some events, by default random ones; `known` says whether users have attributes."""

    def make(
        events: list[Event] | None = None, *, size: int = 600, seed: int = 0, clock: bool = True, known: bool = True
    ) -> Corpus:
        chosen = random_events(size, seed, DAY // 3 if clock else 1) if events is None else events
        return write_log(tmp_path / f"log-{len(list(tmp_path.iterdir()))}", chosen, clock, known)

    return make
