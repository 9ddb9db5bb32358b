"""Training examples of a sequence model: windows of histories, gathered from the log when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from onesearch.context.sequence import SequenceBuilder
from onesearch.corpus import TRAIN, Requests
from onesearch.corpus.split import target_kind


@dataclass(frozen=True)
class Examples(Dataset[int]):
    """Windows of histories by number; the collator does the rest.

    Attributes:
        first, end: (W,) the counted events (see `SequenceBuilder`) that are read.
        begins: (W,) bool, whether a history begins at `first`.
        query: (W,) what was asked at the end, a query of the corpus or -1.
        target: (W,) the item that follows, the only one to be learnt; -1 where every next item is.
    """

    first: NDArray[np.int64]
    end: NDArray[np.int64]
    begins: NDArray[np.bool_]
    query: NDArray[np.int64]
    target: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, place: int) -> int:
        return place


class Histories:
    """Collates windows into arguments of `SequenceGenerator.forward`."""

    def __init__(self, builder: SequenceBuilder, split: NDArray[np.int8]) -> None:
        self.builder = builder
        corpus = builder.corpus
        asked = (split == TRAIN) & (corpus.kind == target_kind(corpus))
        self._label = np.append(np.where(asked, corpus.item, -1)[builder.event], -1).astype(np.int64)

    def training(self, split: NDArray[np.int8]) -> Examples:
        """The training parts of all histories."""
        first, end, begins = self.builder.windows(split == TRAIN)
        query = self.builder.corpus.query[self.builder.event[end - 1]].astype(np.int64)
        return Examples(first, end - 1, begins, query, np.full(len(first), -1))

    def held_out(self, requests: Requests) -> Examples:
        """One window a request."""
        start, end = self.builder.before[requests.history_start], self.builder.before[requests.history_end]
        first = np.maximum(start, end - self.builder.positions)
        query = self.builder.corpus.query[requests.event].astype(np.int64)
        return Examples(first, end, first == start, query, requests.target.astype(np.int64))

    def batch(self, examples: Examples, rows: Sequence[int]) -> dict[str, Tensor]:
        """The examples `rows`; every label is a training event, or the target of a request."""
        chosen = np.asarray(rows)
        first, end, target = examples.first[chosen], examples.end[chosen], examples.target[chosen]
        items = self.builder.gather(first, end, examples.begins[chosen])
        place = np.arange(items.shape[1]) + first[:, None]
        labels = np.where(place <= end[:, None], self._label[np.minimum(place, len(self._label) - 1)], -1)
        single = target >= 0
        labels[single] = np.where(place[single] == end[single, None], target[single, None], -1)
        batch = {"items": torch.from_numpy(items), "labels": torch.from_numpy(labels)}
        queries = self.builder.queries(first, end, examples.query[chosen])
        return batch if queries is None else {**batch, "queries": torch.from_numpy(queries)}
