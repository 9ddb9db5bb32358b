"""Searches of catalogues of a few dozen items by scoring every item, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from catalogues import random_codes
from hypothesis import strategies as st
from language_models import (
    CAUSAL,
    SEQ2SEQ,
    item_log_prob,
    level_starts,
    padded,
    random_model,
    random_prompts,
)
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from onesearch.allowed import Allowed
from onesearch.model.language import LanguageModel, language_model
from onesearch.prefix import PrefixIndex
from onesearch.search import LanguageScorer

EXACT = {"atol": 3e-4, "rtol": 1e-4}
"""Two ways to the same sum of float32 logarithms."""


@dataclass(frozen=True)
class Case:
    """Three prompts of unequal length, a catalogue with shared semantic IDs, and a filter for each prompt."""

    model: PreTrainedModel
    scorer: LanguageScorer
    language: LanguageModel
    prompts: list[NDArray[np.int64]]
    codes: NDArray[np.int32]
    order: NDArray[np.int32]
    mask: Tensor
    allowed: Allowed | None

    def log_prob(self) -> Tensor:
        """(B, N, L) of every code of every item, from full forwards of the model's own."""
        normalise = self.language.normalise
        sizes = self.language.level_sizes
        return torch.stack([item_log_prob(self.model, one, self.codes, sizes, normalise) for one in self.prompts])

    def ranked(self, scores: NDArray[np.float64], request: int) -> list[int]:
        """The allowed items of a request by score, those of one semantic ID together in their order."""
        shared: dict[tuple[int, ...], float] = {}
        for item in range(len(self.codes)):
            shared.setdefault(tuple(self.codes[item]), float(scores[item]))
        items = [item for item in range(len(self.codes)) if self.mask[request, item]]
        return sorted(items, key=lambda i: (-shared[tuple(self.codes[i])], tuple(self.codes[i]), self.order[i]))


def cases(families: tuple[str, ...] = CAUSAL + SEQ2SEQ) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {
            "seed": st.integers(0, 2**16),
            "items": st.integers(1, 40),
            "sizes": st.sampled_from([(4, 5, 6), (2, 30), (3, 3, 3, 3)]),
            "family": st.sampled_from(families),
            "normalise": st.sampled_from(["children", "level"]),
            "side": st.sampled_from(["left", "right"]),
            "filtered": st.booleans(),
        }
    )


def made(
    seed: int,
    items: int,
    sizes: tuple[int, ...],
    family: str,
    normalise: Any = "children",
    side: str = "left",
    filtered: bool = False,
    unique: bool = False,
) -> Case:
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, items, sizes, unique)
    order = rng.permutation(items).astype(np.int32)
    index = PrefixIndex.build(codes, order)
    model = random_model(family, sizes)
    language = language_model(model, level_starts(sizes), sizes, normalise)
    prompts = random_prompts(rng)
    mask = torch.ones(len(prompts), items, dtype=torch.bool)
    if filtered:
        mask = torch.from_numpy(rng.random(mask.shape) < rng.random((len(prompts), 1)))
    scorer = LanguageScorer(language, language.read(*padded(prompts, side)), index)
    allowed = Allowed.of(index, mask) if filtered else None
    return Case(model, scorer, language, prompts, codes, order, mask, allowed)
