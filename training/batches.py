"""Training examples: nothing is materialised, a batch is gathered from the log when it is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from onesearch.context.batch import ContextBuilder, EncodedQueries
from onesearch.corpus import Requests
from training.karma import Told

MEGABATCH = 16
"""Batches whose examples are sorted by length together."""


ENCODED = 1 << 18
"""Queries encoded together: bounds the memory that this takes beside the result."""


class Events(Dataset[int]):
    """The events to learn from, by index; the collator does the rest."""

    def __init__(self, events: NDArray[np.int64]) -> None:
        self.events = events

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, place: int) -> int:
        return int(self.events[place])


class TrainingBatches:
    """Collates event indices into arguments of `Generator.forward`.

    The distinct queries of the events are tokenised and embedded once, before the first batch.
    """

    def __init__(self, builder: ContextBuilder, events: NDArray[np.int64], told: Told | None = None) -> None:
        """`told`: what KARMA's losses ask of the targets, where any of them is switched on."""
        corpus = builder.corpus
        asked = np.unique(corpus.query[events])
        texts: dict[str, int] = {}
        row = [texts.setdefault(corpus.meant[query] if query >= 0 else "", len(texts)) for query in asked]
        self.builder, self._told = builder, told
        self._row = np.full(len(corpus.queries) + 1, -1, np.int64)  # the last place is that of events without a query
        self._row[asked] = row
        distinct = list(texts)
        self._queries = EncodedQueries.joined(
            [builder.encode(distinct[start : start + ENCODED]) for start in range(0, max(len(distinct), 1), ENCODED)]
        )

    def lengths(self, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) tokens of each event's query."""
        return self._queries.lengths[self._row[self.builder.corpus.query[events]]]

    def __call__(self, events: Sequence[int]) -> dict[str, Any]:
        corpus = self.builder.corpus
        chosen = np.asarray(events, np.int64)
        requests = Requests.of(corpus, chosen)
        inputs, _ = self.builder.inputs(requests, self._queries.take(self._row[corpus.query[chosen]]))
        if self._told is not None:
            inputs["told"] = self._told(chosen)
        return inputs | {"labels": torch.from_numpy(self.builder.codes[requests.target])}


class OneAhead(Iterator[Any]):
    """The batches of an iterator; while one is learnt from, the next is made in a thread.

    Unlike the worker processes of a data loader it needs no copy of the log's arrays, and no fork.
    """

    def __init__(self, batches: Iterator[Any]) -> None:
        self.batches = batches
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next = self._thread.submit(next, batches, None)

    def __next__(self) -> Any:
        batch = self._next.result()
        if batch is None:
            self._thread.shutdown(wait=False)
            raise StopIteration
        self._next = self._thread.submit(next, self.batches, None)
        return batch


class SimilarLengths(Sampler[int]):
    """A new random order every epoch in which the examples of one batch have queries of similar length.

    The order depends on the seed, the epoch and the *global* batch size only, so that two processes with half the batch
    each see what one process sees. The few examples that do not fill a batch wait for another epoch.
    """

    def __init__(self, lengths: NDArray[np.int64], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths) // self.batch * self.batch

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        mega = self.batch * MEGABATCH
        for start in range(0, len(order), mega):
            part = order[start : start + mega]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            whole = len(part) // self.batch * self.batch
            batches = part[:whole].reshape(-1, self.batch)
            yield from batches[random.permutation(len(batches))].ravel().tolist()
