"""A trained run as one of the compared systems, in each of its modes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Requests
from onesearch.readers.generator import GeneratorReader
from onesearch.retriever import BEAMS, Retriever
from onesearch.search.fusion import Mode

NAMES: Final[dict[Mode, str]] = {"generate": "generator", "interest": "interest", "both": "both"}
ALIGNED: Final = "aligned"
"""The generator after its alignment with rewards."""


class GeneratorSystem:
    """A trained run, exactly as `onesearch generate --mode MODE` answers.

    Attributes:
        exact_share: share of the last requests whose answers are those of scoring every item.
    """

    def __init__(self, retriever: Retriever, mode: Mode = "generate", name: str | None = None) -> None:
        """`name`: in tables; by default that of the mode."""
        self.retriever, self.mode, self.name = retriever, mode, name or NAMES[mode]
        self.exact_share: float | None = None
        self.tuned: dict[str, Any] = {"beams": BEAMS} if mode != "interest" else {}
        if mode == "both" and retriever.reader.interest is not None:
            self.tuned["interest_share"] = retriever.reader.interest.share

    @classmethod
    def all(cls, retriever: Retriever) -> list[GeneratorSystem]:
        """One for each mode that the model has."""
        modes: list[Mode] = ["generate", "interest", "both"] if retriever.reader.interest is not None else ["generate"]
        return [cls(retriever, mode) for mode in modes]

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        found = self.retriever.ranked(requests, k, mode=self.mode)
        self.exact_share = float(found.exact.mean())
        if isinstance(self.retriever.reader, GeneratorReader):
            self.retriever.reader.builder.views.room.report("evaluation")
        return found.items, found.scores
