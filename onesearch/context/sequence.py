"""What a sequence model reads: the items of a history, one position each, and the content vectors of all items.

A position holds an item and the query that was asked after it; the first position of a history is its beginning. Events
of one session follow each other like any others. Impressions are no part of a history. Batches are gathered from the
log's arrays: no example is ever materialised.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from torch import Tensor

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed import TextEncoder
from onesearch.embed.text import unit_rows
from onesearch.files import atomic_path
from onesearch.model.sequence import BEGIN, EMPTY


@dataclass(frozen=True)
class ItemContent:
    """The principal directions of the vectors that were quantized, and every item along them.

    Attributes:
        mean: (W,). directions: (W, V). vectors: (N, V) unit vectors.
    """

    mean: NDArray[np.float32]
    directions: NDArray[np.float32]
    vectors: NDArray[np.float32]

    @classmethod
    def fit(cls, vectors: NDArray[np.float32], width: int) -> ItemContent:
        """The `width` directions in which vectors (N, W) vary most, or all W if that is fewer."""
        mean = vectors.mean(0).astype(np.float32)
        centred = vectors - mean
        _, _, directions = np.linalg.svd(centred.T @ centred)
        kept = np.ascontiguousarray(directions[:width].T, np.float32)
        return cls(mean, kept, unit_rows((centred @ kept).astype(np.float32)))

    def with_items(self, vectors: NDArray[np.float32]) -> ItemContent:
        """The same with more items (n, W) behind those that are there."""
        new = unit_rows(np.asarray((vectors - self.mean) @ self.directions, np.float32))
        return ItemContent(self.mean, self.directions, np.concatenate([self.vectors, new]))

    def save(self, folder: Path) -> None:
        """Write `content.safetensors`."""
        arrays = {"mean": self.mean, "directions": self.directions, "vectors": self.vectors}
        with atomic_path(folder / "content.safetensors") as path:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    @classmethod
    def load(cls, folder: Path) -> ItemContent:
        """Read what `save` wrote."""
        return cls(**load_file(folder / "content.safetensors"))


class SequenceBuilder:
    """Gathers histories of a log, the latest `positions` items of each.

    Args:
        encoder: of queries; None for a model that reads none.
    """

    def __init__(self, corpus: Corpus, positions: int, encoder: TextEncoder | None) -> None:
        counted = corpus.kind > EVENT_KINDS.index("impression")
        self.corpus, self.positions, self.encoder = corpus, positions, encoder
        self.event = np.flatnonzero(counted)
        self.before = np.concatenate([[0], np.cumsum(counted)])
        """(E + 1,) how many counted events come before each event."""
        self._item = np.append(corpus.item[self.event], EMPTY).astype(np.int64)
        self._query = np.append(corpus.query[self.event], -1).astype(np.int64)
        self._user_start = self.before[corpus.offsets]  # (U + 1,)
        self._known = np.zeros(len(corpus.queries) + 1, bool)  # the last place stays zero: no query
        width = encoder.dimension if encoder is not None else 0
        self._vectors = np.zeros((len(corpus.queries) + 1, width), np.float32)

    def inputs(self, requests: Requests) -> tuple[Tensor, Tensor | None, Tensor]:
        """Arguments of `SequenceGenerator.read` for B requests: items (B, T) and queries (B, T, Q); and (B,) the last
        position of each."""
        start, end = self.before[requests.history_start], self.before[requests.history_end]
        first = np.maximum(start, end - self.positions)
        items = self.gather(first, end, first == start)
        last = end - first
        queries = self.queries(first, end, np.full(len(last), -1))
        if queries is not None and self.encoder is not None:
            asked = list(dict.fromkeys(requests.query))
            vectors = self.encoder.encode(asked)
            place = {query: number for number, query in enumerate(asked)}
            rows = np.array([place[query] for query in requests.query])
            queries[np.arange(len(last)), last] = vectors[rows]
        return torch.from_numpy(items), None if queries is None else torch.from_numpy(queries), torch.from_numpy(last)

    def given(self, requests: Requests) -> NDArray[np.int64]:
        """(B, H) the events that are read, the latest first, -1 in empty places."""
        end = self.before[requests.history_end]
        count = np.minimum(end - self.before[requests.history_start], self.positions)
        back = np.arange(max(int(count.max(initial=0)), 1))
        place = (end[:, None] - 1 - back).clip(0)
        return np.where(back < count[:, None], np.append(self.event, -1)[place], -1)

    def gather(self, first: NDArray[np.int64], end: NDArray[np.int64], begins: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(B, T + 1) the items before `first` (BEGIN where the history `begins` there) and from there to `end`, EMPTY
        behind; `first` and `end` (B,) count counted events."""
        place = np.arange(int((end - first).max(initial=0)) + 1) - 1 + first[:, None]
        items = np.where(place < end[:, None], self._item[np.minimum(place, len(self.event))], EMPTY)
        items[:, 0] = np.where(begins, BEGIN, items[:, 0])
        return items

    def queries(
        self, first: NDArray[np.int64], end: NDArray[np.int64], last: NDArray[np.integer]
    ) -> NDArray[np.float32] | None:
        """(B, T + 1, Q) vectors of what was asked after each of the places of `gather`, after its last one the query
        `last` (B,) of the corpus or -1; None without queries."""
        if self.encoder is None:
            return None
        place = np.arange(int((end - first).max(initial=0)) + 1) + first[:, None]
        query = np.where(place < end[:, None], self._query[np.minimum(place, len(self.event))], -1)
        query[np.arange(len(last)), end - first] = last
        new = np.unique(query[(query >= 0) & ~self._known[query]])
        if len(new):
            self._vectors[new] = self.encoder.encode([self.corpus.meant[number] for number in new])
            self._known[new] = True
        return self._vectors[query]

    def windows(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """The beginnings of all users' histories cut into windows of at most `positions` events.

        Args:
            chosen: (E,) bool; of each user's counted events the first ones, which are for training.

        Returns:
            (W,) first and end of each window, in counted events, and whether a history begins there. The first position
            of a window that does not begin a history reads the item before it.
        """
        total = np.concatenate([[0], np.cumsum(chosen[self.event])])
        count = total[self._user_start[1:]] - total[self._user_start[:-1]]
        pieces = -(-count // self.positions)
        user = np.repeat(np.arange(len(count)), pieces)
        number = np.arange(len(user)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        first = self._user_start[user] + number * self.positions
        end = np.minimum(first + self.positions, self._user_start[user] + count[user])
        return first, end, number == 0
