"""Sums of vectors over a user's whole past, at a cost that does not depend on how long it is.

Per user the running sum is kept after every `BLOCK` events. The past of a request is then one lookup and fewer than
`BLOCK` events after it; a new event costs nothing until it fills a block. A running sum after every event would take
`BLOCK` times the memory; a sum from the beginning would take longer for whoever comes often.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from onesearch.context.views.past import Past, places
from onesearch.corpus import Requests

BLOCK: Final = 64
TAIL_EDGES: Final = (0, 1, 2, 4, 8, 16, 32, 64)
"""Recency buckets among the events after the last full block, counted from the latest."""
BLOCK_EDGES: Final = (0, 1, 3, 7, 15, 31, 63, 127)
"""Recency buckets among full blocks, counted from the last; what lies further back falls into the last bucket."""
BUCKETS: Final = len(TAIL_EDGES) - 1 + len(BLOCK_EDGES)

TOGETHER: Final = 2**14
"""Blocks that are summed at once when the sums are made: bounds the memory beside them."""


class RunningSums:
    """Sums over a `Past` of the rows that each event's item has in a table."""

    def __init__(self, past: Past, table: Tensor, rows: NDArray[np.int64]) -> None:
        """
        Args:
            table: (M, D) float32. rows: (N, R) int64, R rows of the table for each item.
        """
        self._past, self._table, self._rows = past, table, rows
        corpus = past.corpus
        begins = np.searchsorted(past.event, corpus.offsets)
        blocks = np.diff(begins) // BLOCK
        self._first = np.concatenate([[0], np.cumsum(blocks)])
        nth = places(np.zeros_like(blocks), blocks)
        start = np.repeat(begins[:-1], blocks) + nth * BLOCK
        self._sums = np.zeros((len(start), rows.shape[1], table.shape[1]), np.float32)
        for part in range(0, len(start), TOGETHER):
            some = slice(part, part + TOGETHER)
            self._sums[some] = self._summed(start[some], start[some] + BLOCK)
        order = np.argsort(nth, kind="stable")
        edges = np.searchsorted(nth[order], np.arange(nth.max(initial=0) + 2))
        for k in range(1, len(edges) - 1):  # one step for the k-th blocks of all users
            block = order[edges[k] : edges[k + 1]]
            self._sums[block] += self._sums[block - 1]

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the users' pasts."""
        return self._sums.nbytes

    def totals(self, requests: Requests) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(Q, R, D) sums over each request's whole past, and (Q,) how many events it has."""
        begin, end = self._past.span(requests)
        full = (end - begin) // BLOCK
        return self._until(requests.user, full) + self._summed(begin + full * BLOCK, end), end - begin

    def buckets(self, requests: Requests) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The same in `BUCKETS` buckets of places in the past, the latest first: (Q, BUCKETS, R, D) and (Q, BUCKETS).

        Buckets double in size. The events after the last full block fall into the first seven, by their exact places;
        full blocks into the others.
        """
        begin, end = self._past.span(requests)
        full = (end - begin) // BLOCK
        tail = np.maximum(end[:, None] - np.array(TAIL_EDGES), (begin + full * BLOCK)[:, None])
        size = tail[:, :-1] - tail[:, 1:]
        recent = self._summed(tail[:, 1:].ravel(), tail[:, :-1].ravel())
        recent = recent.reshape(*size.shape, *recent.shape[1:])
        block = np.maximum(full[:, None] - np.array([*BLOCK_EDGES, np.iinfo(np.int32).max]), 0)
        user = np.broadcast_to(requests.user[:, None], block.shape)
        until = self._until(user.ravel(), block.ravel()).reshape(*block.shape, *self._sums.shape[1:])
        counts = np.concatenate([size, (block[:, :-1] - block[:, 1:]) * BLOCK], 1)
        return np.concatenate([recent, until[:, :-1] - until[:, 1:]], 1), counts

    def _until(self, user: NDArray[np.integer], blocks: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, R, D) sums over the first blocks of n users; 0 for none, which is all an unknown user (-1) has."""
        found = np.zeros((len(blocks), *self._sums.shape[1:]), np.float32)
        some = blocks > 0
        found[some] = self._sums[self._first[user[some]] + blocks[some] - 1]
        return found

    def _summed(self, start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, R, D) sums over n ranges of the past's events."""
        item = self._past.corpus.item[self._past.event[places(start, end - start)]]
        offsets = torch.from_numpy(np.cumsum(end - start) - (end - start))
        parts = [
            F.embedding_bag(torch.from_numpy(np.ascontiguousarray(row)), self._table, offsets, mode="sum")
            for row in self._rows[item].T
        ]
        return torch.stack(parts, 1).numpy()
