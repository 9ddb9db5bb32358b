"""A trained run as one of the compared systems, in each of its modes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Requests
from onesearch.readers.generator import GeneratorReader
from onesearch.readers.language import LanguageReader
from onesearch.retriever import BEAMS, Retriever
from onesearch.search.fusion import Mode

NAMES: Final[dict[Mode, str]] = {"generate": "generator", "interest": "interest", "both": "both"}
ALIGNED: Final = "aligned"
"""The generator after its alignment with rewards."""


class GeneratorSystem:
    """A trained run, exactly as `onesearch generate --mode MODE` answers.

    Attributes:
        exact_share: share of the last requests whose answers are those of scoring every item.
        answers: to the last requests, as `rank` returned them.
    """

    answers: tuple[NDArray[np.int32], NDArray[np.float32]]

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
        reader = self.retriever.reader
        if isinstance(reader, GeneratorReader):
            reader.builder.views.room.report("evaluation")
        elif isinstance(reader, LanguageReader):
            reader.writer.room.report("evaluation")
        self.answers = found.items, found.scores
        return self.answers


class Unmoved:
    """A generator whose alignment kept the weights of its start: it answers what that one has just answered."""

    name = ALIGNED

    def __init__(self, start: GeneratorSystem) -> None:
        self.start, self.tuned = start, start.tuned

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        return self.start.answers
