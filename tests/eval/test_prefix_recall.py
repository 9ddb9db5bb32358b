"""Recall by shared prefixes: against a ranking that is drawn many times, by hand, and on the made-up shop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.prefix_recall import Relation, held_out_relations, prefix_recall, vector_recall
from onesearch.corpus import TEST, TRAIN, Corpus, make_split


def relation(groups: list[list[int]]) -> Relation:
    group = np.repeat(np.arange(len(groups)), [len(one) for one in groups])
    return Relation.of("", group, np.concatenate(groups), group)


def one_by_one(near: NDArray[np.float64], found: Relation, cut: int) -> list[float]:
    """(N, N) how near items are, minus infinity where they are not to be found -> recall with averaged ties."""
    recalls = []
    for group, item in zip(found.group, found.item, strict=True):
        others = np.delete(np.arange(len(near)), item)
        score = near[item, others]
        members = [j for j in found.item[found.group == group] if j != item and np.isfinite(near[item, j])]
        hits = 0.0
        for j in members:
            before, tied = int((score > near[item, j]).sum()), int((score == near[item, j]).sum())
            hits += min(1.0, max(0.0, (cut - before) / tied))
        recalls.append(hits / min(cut, int((found.group == group).sum()) - 1))
    return recalls


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_prefix_recall_is_that_of_a_ranking_by_shared_codes(cut: int) -> None:
    rng = np.random.default_rng(cut)
    codes = rng.integers(0, 3, (40, 3))
    found = relation([rng.choice(40, size, replace=False).tolist() for size in (2, 3, 5, 8, 2)])
    shared = np.cumprod(codes[:, None] == codes[None], axis=2).sum(axis=2).astype(float)
    shared[shared == 0] = -np.inf
    np.testing.assert_allclose(prefix_recall(codes, found, [cut])[:, 0], one_by_one(shared, found, cut))


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_vector_recall_is_that_of_a_ranking_by_distance(cut: int) -> None:
    rng = np.random.default_rng(cut)
    vectors = rng.standard_normal((25, 6)).astype(np.float32)[rng.integers(0, 25, 40)]  # some are equal, and so tied
    distance = np.square(vectors[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    found = relation([rng.choice(40, size, replace=False).tolist() for size in (2, 3, 5, 8, 2)])
    np.testing.assert_allclose(vector_recall(vectors, [found], [cut])[0][:, 0], one_by_one(-distance, found, cut))


def test_ties_are_averaged_and_strangers_are_not_found() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 0], [1, 1]])
    assert prefix_recall(codes, relation([[0, 1]]), [1, 2, 3])[0] == pytest.approx([1 / 3, 2 / 3, 1])
    assert prefix_recall(codes, relation([[0, 4]]), [5])[0] == pytest.approx([0])
    assert prefix_recall(codes, relation([[4, 5]]), [1])[0] == pytest.approx([1])


def test_groups_of_one_item_and_repeated_rows_are_left_out() -> None:
    found = Relation.of("", np.array([3, 3, 3, 9, 4]), np.array([1, 1, 2, 5, 6]), np.arange(5))
    assert (found.group.tolist(), found.item.tolist(), found.drawn.tolist()) == ([3, 3], [1, 2], [0, 2])


def test_only_held_out_purchases_count(quantized_run: Path) -> None:
    corpus = Corpus.load(quantized_run / "corpus")
    split = make_split(corpus)
    bought, asked = held_out_relations(corpus, split)
    assert (bought.name, asked.name) == ("bought together", "same query")
    late = set(corpus.item[split != TRAIN].tolist())
    assert set(bought.item.tolist()) <= late and set(asked.item.tolist()) <= late
    visits = corpus.session[split != TRAIN]
    pairs = sum(len(set(corpus.item[split != TRAIN][visits == visit])) > 1 for visit in np.unique(visits))
    assert len(np.unique(bought.group)) == pairs
    nothing = held_out_relations(corpus, np.full_like(split, TRAIN))
    assert nothing == [] and (split == TEST).any()
