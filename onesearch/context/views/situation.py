"""Where and with what a request is made: its place or its device, as the log names them.

The names are numbered when a model is trained, the most frequent first, and saved with it; what a loaded model never
saw is unknown, like a request of which nothing is said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.corpus import Corpus, Requests
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

VALUES: Final = 2**16
"""At most so many names, the most frequent ones."""


class Situation:
    """`place_value` or `device_value` (Q, 1) int64: the number of the name, from 1; 0 where it is unknown."""

    positions = 1

    def __init__(self, corpus: Corpus, what: Literal["place", "device"], names: list[str]) -> None:
        self.what, self.names = what, names
        number = {name: place for place, name in enumerate(names, 1)}
        known = corpus.places if what == "place" else corpus.devices
        self._numbers = np.array([*(number.get(name, 0) for name in known), 0], np.int64)  # -1 takes the last

    @classmethod
    def fit(cls, corpus: Corpus, what: Literal["place", "device"]) -> Situation:
        """Number the names of a corpus.

        Raises:
            UserError: no event has any.
        """
        known, of_event = (corpus.places, corpus.place) if what == "place" else (corpus.devices, corpus.device)
        if not known:
            raise UserError(
                f"the view {what!r} needs what the log does not have: events with a {what}",
                place=corpus.folder / "events.parquet",
                value=what,
                remedy=f"give the events a {what} and run `onesearch prepare` again, or leave {what!r} out of `views`",
            )
        count = np.bincount(of_event[of_event >= 0], minlength=len(known))
        return cls(corpus, what, [known[place] for place in np.argsort(-count, kind="stable")[:VALUES]])

    @classmethod
    def load(cls, corpus: Corpus, what: Literal["place", "device"], folder: Path) -> Situation:
        """With the names that `save` wrote."""
        return cls(corpus, what, read_json(folder / f"{what}.json"))

    def save(self, folder: Path) -> None:
        """Write `place.json` or `device.json`."""
        write_json(folder / f"{self.what}.json", self.names)

    def sizes(self) -> dict[str, Any]:
        return {"values": len(self.names) + 1}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        number = requests.place if self.what == "place" else requests.device
        return {f"{self.what}_value": self._numbers[number][:, None]}
