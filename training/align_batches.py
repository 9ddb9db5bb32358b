"""What an alignment learns from: pairs drawn once, and batches of their frozen vectors.

A training example is one pair of every relation (its row number modulo their count, for relations with fewer), so that
all losses see all batches and nothing depends on how many processes share them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.corpus import TRAIN, Corpus
from onesearch.embed import TextEncoder, embed_catalogue
from training.pairs import (
    Ints,
    KnownPairs,
    Pairs,
    Preferences,
    co_clicked_items,
    interactions,
    preferences,
    query_item_pairs,
    query_query_pairs,
)
from training.semantic_negatives import SemanticNegatives
from training.swing import swing_pairs

CONTRASTED: Final = ("query_query", "item_item", "query_item")
"""Relations that are learnt with the other pairs of the batch as negatives."""

_BLOCK: Final = 16_384


@dataclass(frozen=True)
class Judgements:
    """P graded pairs; grades lie between 0 and 1."""

    query: Ints
    item: Ints
    grade: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.query)


@dataclass(frozen=True)
class Negatives:
    """For every query-item pair: far and near items, and how much of what is mixed.

    Attributes:
        items: (P, F + H) far, then near negatives.
        usable: (P, F + H) bool; false where there is none, or the log says that the query led to it.
        shares: (P, F + H) float32 in [0, 1); of the first of two far items, and of the right one before a near one.
        far: F.
    """

    items: Ints
    usable: NDArray[np.bool_]
    shares: NDArray[np.float32]
    far: int


@dataclass(frozen=True)
class Mined:
    """All that is learnt from, by relation; None where it is not asked for or the log does not have it.

    Queries are numbered as in the corpus; those that only judgements know come behind, in `extra_queries`.
    """

    query_query: Pairs | None = None
    item_item: Pairs | None = None
    query_item: Pairs | None = None
    preferences: Preferences | None = None
    judgements: Judgements | None = None
    negatives: Negatives | None = None
    extra_queries: tuple[str, ...] = ()

    def queries(self) -> Ints:
        """The numbers of all queries that occur, in rising order."""
        used = [np.zeros(0, np.int64)]
        if self.query_query is not None:
            used += [self.query_query.left, self.query_query.right]
        used += [self.query_item.left] if self.query_item is not None else []
        used += [part.query for part in (self.preferences, self.judgements) if part is not None]
        return np.unique(np.concatenate(used))

    def __len__(self) -> int:
        parts = (self.query_query, self.item_item, self.query_item, self.preferences, self.judgements)
        return max((len(part) for part in parts if part is not None), default=0)


def text_numbers(texts: Sequence[str]) -> Ints:
    """(N,) the number of each text, equal for equal texts.

    >>> text_numbers(["b", "a", "b"]).tolist()
    [1, 0, 1]
    """
    return pl.Series("text", texts, dtype=pl.String).rank("dense").to_numpy().astype(np.int64) - 1


def mine(
    corpus: Corpus,
    split: NDArray[np.int8],
    text: Ints,
    weights: Mapping[str, float],
    pairs: int,
    swing_share: float,
    user_pairs: int,
    seed: int,
) -> Mined:
    """Draw at most `pairs` pairs of every relation with a weight, from training events only.

    Args:
        text: (N,) see `text_numbers`.
        weights: of the losses by name.
        swing_share: share of the item-item pairs that are Swing's; the others were taken after one query.
        user_pairs: see `swing`.
    """
    events = interactions(corpus, split)
    seeds = [np.random.default_rng((seed, relation)) for relation in range(4)]
    found: dict[str, Any] = {}
    if weights["query_query"]:
        found["query_query"] = query_query_pairs(corpus, events, text, pairs, seeds[0])
    if weights["item_item"]:
        by_swing = round(pairs * swing_share)
        parts = [co_clicked_items(corpus, events, text, pairs - by_swing, seeds[1])]
        if by_swing:
            parts.append(swing_pairs(corpus, events, text, by_swing, user_pairs, seed))
        both = Pairs(np.concatenate([one.left for one in parts]), np.concatenate([one.right for one in parts]))
        found["item_item"] = both.part(seeds[1].permutation(len(both)))
    if weights["query_item"] or weights["decoupled"] or weights["semantic"]:
        found["query_item"] = query_item_pairs(corpus, events, pairs, seeds[2])
    if weights["rank"]:
        found["preferences"] = preferences(corpus, split, pairs, seeds[3])
    if weights["relevance"]:
        found["judgements"], found["extra_queries"] = judgements(corpus, split, pairs, seed)
    return Mined(**{name: part for name, part in found.items() if len(part)})


def judgements(corpus: Corpus, split: NDArray[np.int8], size: int, seed: int) -> tuple[Judgements, tuple[str, ...]]:
    """At most `size` graded pairs, and the queries that the log does not have.

    A query that is asked in a held-out event takes no part: its judgements would give away answers.
    """
    held_out = np.unique(corpus.query[(split != TRAIN) & (corpus.query >= 0)])
    queries = pl.DataFrame({"query": pl.Series(corpus.queries, dtype=pl.String)}).with_row_index("number")
    items = corpus.items.select("item_id").with_row_index("item")
    graded = (
        corpus.relevance.join(items, on="item_id", maintain_order="left")
        .join(queries, on="query", how="left", maintain_order="left")
        .filter(~pl.col("number").is_in(held_out) | pl.col("number").is_null())
    )
    graded = graded.sample(min(size, len(graded)), shuffle=True, seed=seed)
    extra = graded.filter(pl.col("number").is_null())["query"].unique(maintain_order=True)
    behind = pl.DataFrame({"query": extra}).with_row_index("behind", offset=len(corpus.queries))
    graded = graded.join(behind, on="query", how="left", maintain_order="left")
    number = graded.select(pl.coalesce(pl.col("number").cast(pl.Int64), pl.col("behind").cast(pl.Int64))).to_series()
    grade = graded["grade"].to_numpy().astype(np.float32)
    top = max(float(corpus.relevance["grade"].max() or 0), 1e-9)  # type: ignore[arg-type]
    found = Judgements(
        number.to_numpy().astype(np.int64), graded["item"].to_numpy().astype(np.int64), (grade / top).clip(0, 1)
    )
    return found, tuple(extra.to_list())


@dataclass(frozen=True)
class FrozenVectors:
    """The encoder's vectors of N items and of those queries that occur; both may be memory maps.

    Attributes:
        items: (N, D). queries: (Q', D). asked: (Q',) rising numbers of the queries.
    """

    items: NDArray[np.float32]
    queries: NDArray[np.float32]
    asked: Ints

    @classmethod
    def encode(
        cls, corpus: Corpus, mined: Mined, items: NDArray[np.float32], encoder: TextEncoder, folder: Path
    ) -> FrozenVectors:
        """Encode the queries that occur into `folder`; what is there already is taken up."""
        asked = mined.queries()
        known = len(corpus.queries)
        texts = [corpus.meant[number] if number < known else mined.extra_queries[number - known] for number in asked]
        return cls(items, embed_catalogue(texts, encoder, folder), asked)

    def query(self, numbers: Ints) -> NDArray[np.float32]:
        """(n, D) vectors of queries."""
        return np.asarray(self.queries[np.searchsorted(self.asked, numbers)])

    def item(self, numbers: Ints) -> NDArray[np.float32]:
        """(n, D) vectors of items."""
        return np.asarray(self.items[numbers])

    def near_enough(self, mined: Mined, cosine: float) -> Mined:
        """The same without pairs whose frozen vectors agree less than `cosine`, which are mostly chance."""
        kinds: dict[str, tuple[Callable[[Ints], NDArray[np.float32]], Callable[[Ints], NDArray[np.float32]]]] = {
            "query_query": (self.query, self.query),
            "item_item": (self.item, self.item),
            "query_item": (self.query, self.item),
        }
        kept: dict[str, Any] = {}
        for name, (left_of, right_of) in kinds.items():
            pairs: Pairs | None = getattr(mined, name)
            if pairs is None:
                continue
            agree = np.empty(len(pairs), np.float32)
            for start in range(0, len(pairs), _BLOCK):
                part = slice(start, start + _BLOCK)
                agree[part] = np.einsum("nd,nd->n", left_of(pairs.left[part]), right_of(pairs.right[part]))
            near = pairs.part(agree >= cosine)
            kept[name] = near if len(near) else None
        return replace(mined, **kept)


def with_negatives(
    mined: Mined, semantic: SemanticNegatives, known: KnownPairs, text: Ints, far: int, near: int, seed: int
) -> Mined:
    """The same with `far` and `near` semantic negatives for each query-item pair."""
    if mined.query_item is None:
        return mined
    random = np.random.default_rng((seed, 4))
    pairs = mined.query_item
    items = np.concatenate(semantic.draw(pairs.right, far, near, random), axis=1)
    led = known.contains(np.repeat(pairs.left, far + near), text[items.clip(0)].ravel()).reshape(items.shape)
    shares = random.random(items.shape).astype(np.float32)
    return replace(mined, negatives=Negatives(items.clip(0), (items >= 0) & ~led, shares, far))


class AlignmentBatches:
    """Collates row numbers into tensors.

    A batch of B examples has `vectors` (R, D), the rows that go through the map: B of every role of `roles`, in their
    order (times F + H for the negatives); and by name what the losses need besides: `ids` (B, 2C) queries' and item
    texts' numbers of the C contrasted relations, `steps` (B,), `grades` (B,), `usable` and `shares` (B, F + H).

    Attributes:
        roles: (name, rows per example) of each stretch of `vectors`.
        relations: the contrasted relations that there are.
    """

    def __init__(self, mined: Mined, frozen: FrozenVectors, text: Ints) -> None:
        self.mined, self.frozen, self.text = mined, frozen, text
        self.relations = [name for name in CONTRASTED if getattr(mined, name) is not None]
        self.roles = [(f"{name}_{side}", 1) for name in self.relations for side in ("left", "right")]
        if mined.preferences is not None:
            self.roles += [("asked", 1), ("better", 1), ("worse", 1)]
        if mined.judgements is not None:
            self.roles += [("judged_query", 1), ("judged_item", 1)]
        if mined.negatives is not None:
            self.roles.append(("negatives", mined.negatives.items.shape[1]))

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        chosen, mined, frozen = np.asarray(rows, np.int64), self.mined, self.frozen
        vectors: list[NDArray[np.float32]] = []
        others: dict[str, NDArray[Any]] = {}
        ids: list[Ints] = []
        for name in self.relations:
            pairs: Pairs = getattr(mined, name)
            here = pairs.part(chosen % len(pairs))
            for side, kind in zip((here.left, here.right), name.split("_"), strict=True):
                vectors.append(frozen.query(side) if kind == "query" else frozen.item(side))
                ids.append(side if kind == "query" else self.text[side])
        others["ids"] = np.stack(ids, axis=1) if ids else np.zeros((len(chosen), 0), np.int64)
        if (compared := mined.preferences) is not None:
            at = chosen % len(compared)
            vectors += [frozen.query(compared.query[at]), frozen.item(compared.better[at])]
            vectors.append(frozen.item(compared.worse[at]))
            others["steps"] = compared.steps[at]
        if (judged := mined.judgements) is not None:
            at = chosen % len(judged)
            vectors += [frozen.query(judged.query[at]), frozen.item(judged.item[at])]
            others["grades"] = judged.grade[at]
        if (negatives := mined.negatives) is not None and mined.query_item is not None:
            at = chosen % len(mined.query_item)
            vectors.append(frozen.item(negatives.items[at].ravel()))
            others |= {"usable": negatives.usable[at], "shares": negatives.shares[at]}
        arrays = {"vectors": np.concatenate(vectors).astype(np.float32), **others}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def found_relations(mined: Mined) -> dict[str, int]:
    """How many pairs there are of each relation, to tell the user."""
    parts = {field.name: getattr(mined, field.name) for field in fields(mined)}
    counted = (Pairs, Preferences, Judgements)
    return {name: len(part) for name, part in parts.items() if isinstance(part, counted)}
