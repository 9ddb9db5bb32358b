"""What puts given items in order: the generator in each of its modes. Every baseline of `eval.baselines` does as well.

A scorer has a `name`, says whether its scores are probabilities of the label (`calibrated`, and `logarithmic` where
they are logarithms), and gives (Q, K) items of Q requests their (Q, K) scores; see `eval.baselines.Scorer`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.baselines import Scorer
from eval.generator import NAMES
from eval.ranked_lists import RankedLists
from onesearch.corpus import Requests
from onesearch.errors import UserError
from onesearch.retriever import Retriever
from onesearch.search.fusion import Mode
from onesearch.search.scores import item_log_prob

PAIRS: Final = 4_096
"""Pairs of a request and an item that are scored at once: with more the tensors leave the processor's cache."""


class GeneratorScores:
    """A trained model: log P(semantic ID | request), the logit of its interest head, or both as `--mode both` ranks.

    Log-probabilities are those of teacher forcing, normalised as the search has them. They are probabilities of being
    the one item that followed, if there is one, if every item has a semantic ID of its own, and if the model shares out
    all probability among the items of the catalogue; the last shows when requests are read, so `calibrated` is certain
    after `score`.
    """

    logarithmic = True

    def __init__(self, retriever: Retriever, mode: Mode = "generate", one_answer: bool = False) -> None:
        """`one_answer`: see `RankedLists.one_answer`."""
        self.retriever, self.mode, self.name = retriever, mode, NAMES[mode]
        index = retriever.reader.index
        alone = len(index.below[-1]) - 1 == len(index)
        self.calibrated = one_answer and alone and mode == "generate"

    @classmethod
    def all(cls, retriever: Retriever, one_answer: bool = False) -> list[GeneratorScores]:
        """One for each mode that the model has."""
        modes: list[Mode] = ["generate", "interest", "both"] if retriever.reader.interest is not None else ["generate"]
        return [cls(retriever, mode, one_answer) for mode in modes]

    @torch.inference_mode()
    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.float64]:
        """See `Scorer.score`; -inf for items that are not on sale."""
        reader = self.retriever.reader
        on_sale = np.zeros(len(self.retriever.corpus.items), bool)
        on_sale[reader.index.items.cpu().numpy()] = True
        known = np.where((items >= 0) & on_sale[items], items, -1)
        scores = np.full(items.shape, -np.inf)
        for rows, width in _blocks(items):
            scorer: Any = reader.read(requests.part(rows))
            self.calibrated &= scorer.closed
            wanted = torch.from_numpy(known[rows, :width].astype(np.int64)).to(reader.device)
            scores[rows, :width] = self._score(scorer, wanted).double().cpu().numpy()
        return scores

    def _score(self, scorer: Any, items: Tensor) -> Tensor:
        index = self.retriever.reader.interest
        if self.mode == "generate" or index is None:
            return item_log_prob(scorer, items)
        logit = index.logits(scorer.interest, items)
        if self.mode == "interest":
            return logit
        both = (1 - index.share) * item_log_prob(scorer, items) + index.share * logit
        return both.masked_fill(items < 0, -torch.inf)  # a share of 0 times -inf is no number


def _blocks(items: NDArray[np.int32]) -> Iterator[tuple[slice, int]]:
    """Rows of (Q, K) items with about PAIRS places, and the longest list among them."""
    size = max(1, PAIRS // items.shape[1])
    for start in range(0, len(items), size):
        rows = slice(start, start + size)
        yield rows, max(1, int((items[rows] >= 0).sum(axis=1).max()))


def scores_of(scorer: Scorer, lists: RankedLists) -> NDArray[np.float64]:
    """(Q, K) scores of the lists, -inf in empty places.

    Raises:
        UserError: a score that is not a number, with scorer, search and item; no searches to score for.
    """
    if lists.requests is None:
        raise UserError("these lists have no searches to score for", value=scorer.name)
    given = np.asarray(scorer.score(lists.requests, lists.items), np.float64)
    return checked(scorer.name, np.where(lists.there, given, -np.inf), lists)


def checked(name: str, scores: NDArray[np.float64], lists: RankedLists) -> NDArray[np.float64]:
    """The scores; a `UserError` where one is not a number."""
    wrong = np.isnan(scores)
    if wrong.any():
        row, column = (int(place[0]) for place in np.nonzero(wrong))
        item = lists.item_ids[int(lists.items[row, column])]
        place, remedy = f"scorer {name!r}, list {lists.queries[row]}, item {item}", "leave it out with --scorers"
        raise UserError(f"{int(wrong.sum()):,} scores are not numbers, the first one", place=place, remedy=remedy)
    return scores
