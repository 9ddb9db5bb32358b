"""The generator as one of the compared systems."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Requests
from onesearch.readers.generator import GeneratorReader
from onesearch.retriever import BEAMS, Retriever


class GeneratorSystem:
    """Constrained beam search of a trained run, exactly as `onesearch generate` answers.

    Attributes:
        exact_share: share of the last requests whose answers are those of scoring every item.
    """

    name = "generator"

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.exact_share: float | None = None
        self.tuned: dict[str, Any] = {"beams": BEAMS}

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        found = self.retriever.ranked(requests, k)
        self.exact_share = float(found.exact.mean())
        if isinstance(self.retriever.reader, GeneratorReader):
            self.retriever.reader.builder.views.room.report("evaluation")
        return found.items, found.scores
