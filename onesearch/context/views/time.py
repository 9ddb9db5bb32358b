"""The moment of the request: hour of the day and day of the week, as the log's clock has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.popularity import DAY
from onesearch.errors import UserError

HOURS: Final = 24
WEEK: Final = 7
THURSDAY: Final = 3
"""The day on which the clock began, 1 January 1970, counted from Monday."""


class Time:
    """`time_moment` (Q, 2) int64: the hour from 0 to 23, and the weekday from 0, Monday, to 6."""

    positions = 1

    def __init__(self, corpus: Corpus) -> None:
        """Raises a `UserError` where the log has no clock."""
        if not corpus.has_clock:
            raise UserError(
                "the view 'time' needs what the log does not have: clock times",
                place=corpus.folder / "events.parquet",
                value="timestamp",
                remedy="give the events timestamps instead of positions, or leave 'time' out of `views`",
            )

    def sizes(self) -> dict[str, Any]:
        return {}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        days, seconds = np.divmod(requests.time, DAY)
        return {"time_moment": np.stack([seconds * HOURS // DAY, (days + THURSDAY) % WEEK], -1).astype(np.int64)}

    def save(self, folder: Path) -> None:
        """Nothing to save."""
