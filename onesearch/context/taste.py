"""What a household likes, beyond what it asks for: vectors of items from who bought them.

Items are alike when the same users bought them: a truncated SVD of the (items x users) matrix of log counts gives each
user a factor, and an item the sum of the factors of its buyers. Among items that fit a query equally well, those like
the user's other purchases are the likelier ones, most of all where none of them was bought before.

A generator must not learn from vectors that know what it is to predict. So the factors come from the events before
those that it learns from (a click on the way to a purchase is as late as the purchase); the items' vectors are made of
the same events in training, and of all training events afterwards. The factors stay, so both live in one space (this
split is our own; so is the composition). Where a generator learns from all events, there are no taste vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from onesearch.corpus.reader import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed.text import unit_rows
from onesearch.files import atomic_path

DIMENSIONS = 128


@dataclass(frozen=True)
class Taste:
    """factors: (U, d) float32 of the users; d is at most `DIMENSIONS`, 0 where there was nothing to learn from."""

    factors: NDArray[np.float32]

    @classmethod
    def fit(cls, corpus: Corpus, events: NDArray[np.int64], seed: int) -> Taste:
        """Learn the factors from some events; the first singular vector, how much is bought at all, is left out."""
        chosen = _counts(corpus, events)
        width = min(DIMENSIONS + 1, *(side - 1 for side in chosen.shape))
        if not chosen.nnz or width < 2:
            return cls(np.zeros((len(corpus.users), 0), np.float32))
        with threadpool_limits(limits=1, user_api="blas"):  # with more, sums are taken in another order
            _, values, right = randomized_svd(chosen, width, random_state=seed)
        used = np.flatnonzero(values > 1e-6 * values[0])[1:]
        return cls((right[used].T / np.sqrt(values[used])).astype(np.float32))

    def items(self, corpus: Corpus, events: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N, d) unit vectors of the items, made of these events; zero for an item that is in none of them."""
        return unit_rows(np.asarray(_counts(corpus, events) @ self.factors, np.float32))

    def save(self, folder: Path) -> None:
        """Write `taste.safetensors`."""
        with atomic_path(folder / "taste.safetensors") as path:
            save_file({"factors": np.ascontiguousarray(self.factors)}, path)

    @classmethod
    def load(cls, folder: Path) -> Taste:
        return cls(load_file(folder / "taste.safetensors")["factors"])


def _counts(corpus: Corpus, events: NDArray[np.int64]) -> sparse.csr_matrix:
    """(N, U) log(1 + how often), items scaled to unit length, users by the root of theirs: who buys everything says
    little of each thing."""
    events = events[corpus.kind[events] > EVENT_KINDS.index("impression")]
    shape = (len(corpus.items), len(corpus.users))
    counts = sparse.csr_matrix((np.ones(len(events), np.float32), (corpus.item[events], corpus.user[events])), shape)
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    counts = _scaled(_norms(counts, 1) ** -1.0) @ counts
    return (counts @ _scaled(_norms(counts, 0) ** -0.5)).tocsr()


def _norms(matrix: sparse.csr_matrix, axis: int) -> NDArray[np.float32]:
    """Lengths of rows (axis 1) or columns (axis 0); 1 for an empty one."""
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis)).ravel())
    return np.where(length > 0, length, 1).astype(np.float32)


def _scaled(weight: NDArray[np.float32]) -> sparse.csr_matrix:
    return sparse.diags(weight).tocsr()
