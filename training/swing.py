"""Swing: two items belong together when people who otherwise have little in common both took both.

Yang, Zhu, Zhang, Wang, Yuan, "Large Scale Product Graph Construction for Recommendation in E-commerce"
(https://arxiv.org/abs/2010.05525): `s(i, j) = sum of w_u w_v / (alpha + c_uv)` over the pairs of users who took both,
where c_uv is how many items u and v have in common and `w_u = 1 / sqrt(items of u)`.

Ours: where there are more pairs of users than may be looked at, pairs are drawn (an item, then two of its users) and
weighted by the inverse of their chance, so that the expected scores are the exact ones; and where scores would take too
much memory only the `KEPT` strongest partners of an item are kept, so that it grows with the items, not their pairs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onesearch.corpus import Corpus
from training.pairs import Pairs, partners

KEPT: Final = 200
NEIGHBOURS: Final = 20
"""Partners of an item that pairs are drawn from."""
LATEST: Final = 100
"""Items of a user that are looked at: two users with thousands of items each would have millions of pairs."""
_BLOCK: Final = 8192


def swing(held: sparse.csr_array, user_pairs: int, seed: int, alpha: float = 1.0) -> sparse.csr_array:
    """(N, N) symmetric scores, nothing on the diagonal.

    Args:
        held: (U, N) ones where a user took an item.
        user_pairs: how many pairs of users are looked at; as many as there are, or more, gives exact scores.
        seed: of the pairs that are drawn.
        alpha: the higher, the less it matters how much two users have in common.
    """
    users, items = held.shape
    left, right = _user_pairs(held, user_pairs, seed)
    exact = users * (users - 1) // 2 <= user_pairs
    weight = np.maximum(held.sum(axis=1), 1) ** -0.5  # (U,)
    takers = held.sum(axis=0)  # (N,)
    shared = takers > 1
    # A draw takes one of the (user, item) entries of shared items, then another user of that item.
    chance = np.divide(2.0, takers[shared].sum() * (takers - 1), out=np.zeros(items), where=shared)
    scores = sparse.csr_array((items, items), dtype=np.float64)
    for start in range(0, len(left), _BLOCK):
        one, other = left[start : start + _BLOCK], right[start : start + _BLOCK]
        common = held[one].multiply(held[other]).tocsr()  # (b, N)
        value = weight[one] * weight[other] / (alpha + common.sum(axis=1))
        if not exact:
            value /= len(left) * (common @ chance)
        block = (common.T @ sparse.diags_array(value) @ common).tocsr()
        block.setdiag(0)
        scores = (scores + block).tocsr()
        if scores.nnz > 4 * KEPT * items:
            scores = strongest(scores, KEPT)
    return scores.maximum(scores.T).tocsr()


def _user_pairs(held: sparse.csr_array, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two (P,) lists of users: all pairs, or `count` drawn ones (fewer where no two users share an item)."""
    users = held.shape[0]
    if users * (users - 1) // 2 <= count:
        return np.triu_indices(users, 1)
    entries = held.tocoo()
    user, item = entries.row.astype(np.int64), entries.col.astype(np.int64)
    takers = np.bincount(item, minlength=held.shape[1])
    shared = np.flatnonzero(takers[item] > 1)
    user, item = user[shared], item[shared]
    if not len(user):
        return user, user
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(user), count)
    return user[drawn], user[partners(item, random, drawn)]


def strongest(scores: sparse.csr_array, count: int) -> sparse.csr_array:
    """The matrix with the `count` largest entries of every row, zeros left out; equal entries by column."""
    pairs = scores.tocoo()
    seen = pairs.data > 0
    row, column, value = pairs.row[seen], pairs.col[seen], pairs.data[seen]
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    kept = place < count
    return sparse.csr_array((value[kept], (row[kept], column[kept])), shape=scores.shape)


def taken(corpus: Corpus, events: NDArray[np.int64]) -> sparse.csr_array:
    """(U, N) ones where the events say that a user took an item; of every user the `LATEST` items."""
    items = len(corpus.items)
    latest_first = events[::-1]
    key = corpus.user[latest_first].astype(np.int64) * items + corpus.item[latest_first]
    key, first = np.unique(key, return_index=True)
    key = key[np.lexsort((first, key // items))]
    user = key // items
    kept = np.arange(len(key)) - np.searchsorted(user, user) < LATEST
    shape = (len(corpus.users), items)
    return sparse.csr_array((np.ones(int(kept.sum())), (user[kept], key[kept] % items)), shape=shape)


def swing_pairs(
    corpus: Corpus, events: NDArray[np.int64], text: NDArray[np.int64], size: int, user_pairs: int, seed: int
) -> Pairs:
    """At most `size` pairs of items of different text: an item as often as it is taken, and one of its `NEIGHBOURS`
    best partners, drawn in proportion to their scores.

    Args:
        text: (N,) equal for items that cannot be told apart by their text.
        user_pairs: see `swing`.
    """
    scores = swing(taken(corpus, events), user_pairs, seed).tocoo()
    other = text[scores.row] != text[scores.col]
    scores = sparse.csr_array((scores.data[other], (scores.row[other], scores.col[other])), shape=scores.shape)
    scores = strongest(scores, NEIGHBOURS)
    random = np.random.default_rng(seed)
    item = corpus.item[random.permutation(events)[:size]].astype(np.int64)
    item = item[np.diff(scores.indptr)[item] > 0]
    return Pairs(item, draw_columns(scores, item, random))


def draw_columns(weights: sparse.csr_array, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """(P,) for every given row one of its columns, in proportion to the positive weights; no row may be empty."""
    total = weights.sum(axis=1)
    row_of = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    before = np.concatenate([[0.0], np.cumsum(weights.data / total[row_of])])
    start, end = weights.indptr[rows], weights.indptr[rows + 1]
    aim = before[start] + random.random(len(rows)) * (before[end] - before[start])
    place = np.searchsorted(before, aim, side="right") - 1
    return weights.indices[np.clip(place, start, end - 1)].astype(np.int64)
