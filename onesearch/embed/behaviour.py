"""Vectors of items from what people take together: truncated SVD of the positive PMI of co-occurrence.

Levy and Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (https://papers.nips.cc/paper/5477), with
items for words and sessions (baskets, result pages) for contexts. As there, an item's vector is `U * sqrt(S)`; it is
then scaled to unit length. Where the log has no sessions, the context is the `WINDOW` next events of the same user.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds
from threadpoolctl import threadpool_limits

from onesearch.corpus import TRAIN, Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed.text import unit_rows

WINDOW: Final = 5
"""How many following events count as seen together where there are no sessions."""
MAX_SESSION: Final = 200
"""A longer session is cut: the pairs of one endless session would outnumber those of all others."""


def behaviour_vectors(corpus: Corpus, split: NDArray[np.int8], dimension: int, seed: int) -> NDArray[np.float32]:
    """(N, d) unit vectors from clicks, carts and purchases of the training events.

    An item that was never seen together with another has the zero vector; so do the columns beyond the rank of the
    counts. The same corpus, split and seed give the same vectors.

    Args:
        corpus: N items, E events.
        split: (E,) TRAIN, VALID or TEST.
        dimension: d.
        seed: of the vector that the iteration starts with.
    """
    used = np.flatnonzero((split == TRAIN) & (corpus.kind > EVENT_KINDS.index("impression")))
    in_session = corpus.session[used] > 0
    counts = _session_counts(corpus, used[in_session]) + _window_counts(corpus, used[~in_session])
    return unit_rows(_spectral(_ppmi(counts), dimension, seed))


def _session_counts(corpus: Corpus, events: NDArray[np.int64]) -> sparse.csr_array:
    """(N, N) in how many sessions two items are together."""
    items = len(corpus.items)
    if not len(events):
        return sparse.csr_array((items, items))
    key = corpus.user[events].astype(np.int64) * (int(corpus.session.max()) + 1) + corpus.session[events]
    order = np.argsort(key, kind="stable")
    starts = np.concatenate([[True], np.diff(key[order]) != 0])
    place = np.arange(len(order)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    part = np.cumsum(place % MAX_SESSION == 0) - 1
    held = sparse.csr_array(
        (np.ones(len(order), np.float32), (part, corpus.item[events[order]])), shape=(int(part[-1]) + 1, items)
    )
    held.data[:] = 1  # an item twice in a basket is still one item of it
    counts = (held.T @ held).tocsr()
    counts.setdiag(0)
    return counts


def _window_counts(corpus: Corpus, events: NDArray[np.int64]) -> sparse.csr_array:
    """(N, N) how often two items are at most `WINDOW` of these events apart in one user's history."""
    items = len(corpus.items)
    counts = sparse.csr_array((items, items))
    user, item = corpus.user[events], corpus.item[events]
    for lag in range(1, min(WINDOW, len(events) - 1) + 1):
        pair = (user[lag:] == user[:-lag]) & (item[lag:] != item[:-lag])
        left, right = item[:-lag][pair], item[lag:][pair]
        counts += sparse.csr_array((np.ones(len(left), np.float32), (left, right)), shape=(items, items))
    return (counts + counts.T).tocsr()


def _ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    """(N, N) `max(0, log(p(i, j) / (p(i) p(j))))` of symmetric counts."""
    pairs = counts.tocoo()
    total = counts.sum()
    row = counts.sum(axis=1)
    seen = pairs.data > 0
    i, j, count = pairs.row[seen], pairs.col[seen], pairs.data[seen].astype(np.float64)
    value = np.log(count * total / (row[i] * row[j]).astype(np.float64))
    above = value > 0
    return sparse.csr_array((value[above], (i[above], j[above])), shape=counts.shape)


def _spectral(matrix: sparse.csr_array, dimension: int, seed: int) -> NDArray[np.float32]:
    """(N, d) `U * sqrt(S)` of the largest singular values, zero columns beyond the rank, signs fixed."""
    items = matrix.shape[0]
    vectors = np.zeros((items, dimension), np.float32)
    if not matrix.nnz:
        return vectors
    if dimension < items - 1:
        start = np.random.default_rng(seed).standard_normal(items)
        with threadpool_limits(limits=1, user_api="blas"):  # with more, sums are taken in another order
            left, values, _ = svds(matrix, k=dimension, v0=start)
    else:
        left, values, _ = np.linalg.svd(matrix.toarray())
    largest = np.argsort(-values, kind="stable")[:dimension]
    left, values = left[:, largest], values[largest]
    left = left * (values > 1e-9 * values[0])  # directions of singular value nought are arbitrary
    sign = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    vectors[:, : len(largest)] = left * sign * np.sqrt(np.maximum(values, 0))
    return vectors
