"""Do items that belong together share the beginning of their semantic IDs?

Nothing is trained for it: what belongs together is taken from the held-out part of the log (`held_out_relations`), and
for an item all other items are ranked by how many first codes they share with it. Ties are the rule, so the place of an
item among equals is not drawn but averaged over: with `a` items before its tie of `n`, it is among the first k with
probability `(k - a) / n`, cut to 0..1. Items that share no code are never among them. So for an item i of a group g

    recall@k(g, i) = sum over the other items j of g of P(j among the first k) / min(k, |g| - 1)

and the recall of codes is the mean over all (g, i). The same of the vectors themselves, ranked by distance, is what
codes can hardly exceed: `vector_recall`. The measure is ours; papers give the generator's hit rate only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from onesearch.corpus import TRAIN, Corpus
from onesearch.corpus.schema import EVENT_KINDS
from quantizers.metrics import prefix_ids

_SCORES: Final = 1 << 24
_PAIRS: Final = 1 << 16


@dataclass(frozen=True)
class Relation:
    """Groups of different items that belong together, each of two or more, as n rows of (group, item).

    Attributes:
        name: what it means to belong together.
        group: (n,) int64 ascending. item: (n,) int32.
        drawn: (n,) who or what an interval draws anew: users, or queries.
    """

    name: str
    group: NDArray[np.int64]
    item: NDArray[np.int32]
    drawn: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.group)

    @classmethod
    def of(cls, name: str, group: NDArray[np.integer], item: NDArray[np.integer], drawn: NDArray[np.integer]) -> Self:
        """From (n,) rows that may repeat, and groups that may be of one item: these are left out."""
        rows = pl.DataFrame({"group": group.astype(np.int64), "item": item.astype(np.int32), "drawn": drawn})
        rows = rows.unique(["group", "item"], keep="first", maintain_order=True)
        rows = rows.filter(pl.len().over("group") > 1).sort("group", "item")
        return cls(name, rows["group"].to_numpy(), rows["item"].to_numpy(), rows["drawn"].to_numpy())


def held_out_relations(corpus: Corpus, split: NDArray[np.int8]) -> list[Relation]:
    """What belongs together by the clicks, carts and purchases that are not for training.

    "bought together": in one session, or where the log has none by one user. "same query": taken after one query, by
    whomever; where nobody asked anything "same category" instead: items of one leaf of the catalogue, whole.
    """
    events = np.flatnonzero((split != TRAIN) & (corpus.kind > EVENT_KINDS.index("impression")))
    user, item = corpus.user[events].astype(np.int64), corpus.item[events]
    visit = user * (int(corpus.session.max(initial=0)) + 1) + corpus.session[events]
    relations = [Relation.of("bought together", visit, item, user)]
    query = corpus.query[events]
    if (query >= 0).any():
        asked = query >= 0
        relations.append(Relation.of("same query", query[asked], item[asked], query[asked]))
    else:
        leaf = corpus.items["categories"].list.last().rank("dense").fill_null(0).to_numpy().astype(np.int64)
        known = np.flatnonzero(leaf)
        relations.append(Relation.of("same category", leaf[known], known, leaf[known]))
    return [relation for relation in relations if len(relation)]


def prefix_recall(codes: NDArray[np.integer], relation: Relation, cuts: Sequence[int]) -> NDArray[np.float64]:
    """(N, L) codes, n rows, C cuts -> (n, C) recall@k of each row, as the module says.

    >>> codes = np.array([[0, 0], [0, 0], [0, 1], [1, 0]])
    >>> pair = Relation.of("", np.array([0, 0]), np.array([0, 1]), np.array([0, 0]))
    >>> prefix_recall(codes, pair, [1]).tolist()
    [[1.0], [1.0]]
    """
    everything = _sharing(prefix_ids(codes), len(codes))[relation.item]
    joint = np.column_stack([relation.group, codes[relation.item]])
    group = _sharing(prefix_ids(joint), len(relation))[:, 1:]
    before, tied, right = everything[:, 1:] - 1, -np.diff(everything), -np.diff(group)
    # column l of these: sharing exactly l codes; all L shared is the last column, where nothing is before
    before = np.column_stack([before, np.zeros(len(relation), np.int64)])
    tied = np.column_stack([tied, everything[:, -1] - 1])
    right = np.column_stack([right, group[:, -1] - 1])
    recall = np.empty((len(relation), len(cuts)))
    for column, cut in enumerate(cuts):
        chance = np.clip((cut - before) / np.maximum(tied, 1), 0, 1)
        recall[:, column] = (chance * right)[:, 1:].sum(axis=1) / np.minimum(cut, group[:, 0] - 1)
    return recall


def vector_recall(
    vectors: NDArray[np.floating], relations: Sequence[Relation], cuts: Sequence[int]
) -> list[NDArray[np.float64]]:
    """(N, D) vectors, relations of n rows, C cuts -> for each relation (n, C) the same of a ranking by distance.

    Equal vectors are tied.
    """
    distinct, text, size = np.unique(np.asarray(vectors, np.float32), axis=0, return_inverse=True, return_counts=True)
    text = text.ravel()
    near = _nearest(distinct, min(max(cuts) + 1, len(distinct)))
    recalls = [np.empty((len(relation), len(cuts))) for relation in relations]
    for column, cut in enumerate(cuts):
        chance = _chances(near, size, cut)
        for relation, recall in zip(relations, recalls, strict=True):
            recall[:, column] = _found(chance, text, relation) / np.minimum(cut, _others(relation))
    return recalls


def _found(chance: sparse.csr_array, text: NDArray[np.int64], relation: Relation) -> NDArray[np.float64]:
    """(U, U) chances, (N,) text of each item -> (n,) how many of its group each row finds."""
    group = np.unique(relation.group, return_inverse=True)[1]
    shape = (int(group.max(initial=-1)) + 1, chance.shape[0])
    held = sparse.csr_array((np.ones(len(relation)), (group, text[relation.item])), shape=shape)
    found = np.empty(len(relation))
    for start in range(0, len(relation), _PAIRS):
        rows = slice(start, start + _PAIRS)
        found[rows] = chance[text[relation.item[rows]]].multiply(held[group[rows]]).sum(axis=1)
    return found - chance.diagonal()[text[relation.item]]


def _others(relation: Relation) -> NDArray[np.int64]:
    """(n,) how many other items the group of each row has."""
    group = np.unique(relation.group, return_inverse=True)[1]
    return np.bincount(group)[group] - 1


def _sharing(ids: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """(n, L) numbers of prefixes -> (n, L + 1) how many rows share 0, 1, ... L codes or more, the row itself too."""
    counts = [np.bincount(column)[column] for column in ids.T]
    return np.column_stack([np.full(len(ids), total), *counts])


def _nearest(distinct: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """(U, D) -> (U, most) the nearest of them to each, itself first."""
    near = np.empty((len(distinct), most), np.int64)
    length = np.einsum("ud,ud->u", distinct, distinct)
    block = max(1, _SCORES // len(distinct))
    for start in range(0, len(distinct), block):
        rows = np.arange(start, min(start + block, len(distinct)))
        score = 2 * distinct[rows] @ distinct.T - length
        score[np.arange(len(rows)), rows] = np.inf
        best = np.argpartition(-score, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
        near[rows] = np.take_along_axis(best, order, axis=1)
    return near


def _chances(near: NDArray[np.int64], size: NDArray[np.int64], cut: int) -> sparse.csr_array:
    """(U, M) the nearest texts of each text, (U,) their items -> (U, U) chance of an item of each to be in the cut."""
    tied = size[near]
    tied[:, 0] -= 1  # not the item itself
    before = np.cumsum(tied, axis=1) - tied
    chance = np.clip((cut - before) / np.maximum(tied, 1), 0, 1)
    row = np.repeat(np.arange(len(near)), near.shape[1])
    kept = chance.ravel() > 0
    found = (chance.ravel()[kept], (row[kept], near.ravel()[kept]))
    return sparse.csr_array(found, shape=(len(size), len(size)))
