"""The prefix index against a trie of Python dictionaries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onesearch.prefix import PrefixIndex

Prefix = tuple[int, ...]


@st.composite
def catalogues(draw: st.DrawFn) -> NDArray[np.int32]:
    """(N, L) codes, some of them shared."""
    levels = draw(st.integers(1, 4))
    row = st.tuples(*[st.integers(0, draw(st.integers(0, 6))) for _ in range(levels)])
    return np.array(draw(st.lists(row, min_size=1, max_size=40)), np.int32)


def prefixes(codes: NDArray[np.int32], depth: int) -> list[Prefix]:
    """The distinct prefixes of so many codes, in order: the place of each is its node."""
    return sorted({tuple(row[:depth].tolist()) for row in codes})


def below(codes: NDArray[np.int32], prefix: Prefix) -> list[int]:
    return [item for item, row in enumerate(codes) if tuple(row[: len(prefix)].tolist()) == prefix]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues())
def test_the_children_of_every_prefix_are_its_continuations(codes: NDArray[np.int32]) -> None:
    index = PrefixIndex.build(codes)
    assert len(index) == len(codes) and index.levels == codes.shape[1]
    for depth in range(index.levels):
        known = prefixes(codes, depth + 1)
        parents = prefixes(codes, depth)
        node, code, valid = index.children(depth, torch.arange(len(parents)))
        for row, parent in enumerate(parents):
            expected = [prefix for prefix in known if prefix[:depth] == parent]
            assert code[row][valid[row]].tolist() == [prefix[-1] for prefix in expected]
            assert [known[place] for place in node[row][valid[row]]] == expected
            assert set(node[row].tolist()) <= set(range(len(known))), "empty places repeat a valid node"
        assert bool(valid.sum(-1).max() == valid.shape[-1]), "no wider than it must be"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues(), st.randoms(use_true_random=False))
def test_the_items_below_every_prefix_and_their_order(codes: NDArray[np.int32], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(codes)))
    random.shuffle(order)
    index = PrefixIndex.build(codes, np.array(order))
    for depth in range(index.levels + 1):
        for node, prefix in enumerate(prefixes(codes, depth)):
            items = index.items[index.below[depth][node] : index.below[depth][node + 1]].tolist()
            assert items == sorted(below(codes, prefix), key=lambda item: (codes[item].tolist(), order[item]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues(), st.randoms(use_true_random=False))
def test_mass_is_the_sum_below_every_prefix(codes: NDArray[np.int32], random) -> None:  # type: ignore[no-untyped-def]
    index = PrefixIndex.build(codes)
    weight = torch.tensor([[random.uniform(0, 1e6) for _ in codes] for _ in range(2)])
    allowed = weight[0] < 5e5
    for depth, (mass, count) in enumerate(zip(index.mass(weight), index.mass(allowed), strict=True), 1):
        assert mass.dtype == torch.float64 and count.dtype == torch.int64
        for node, prefix in enumerate(prefixes(codes, depth)):
            items = below(codes, prefix)
            assert mass[:, node].tolist() == pytest.approx(weight[:, items].double().sum(1).tolist(), abs=1e-6)
            assert int(count[node]) == int(allowed[items].sum())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues())
def test_nodes_are_the_path_of_an_item(codes: NDArray[np.int32]) -> None:
    index = PrefixIndex.build(codes)
    path = index.nodes(torch.from_numpy(codes.astype(np.int64))[None])
    for depth, nodes in enumerate(path, 1):
        known = prefixes(codes, depth)
        assert [known[node] for node in nodes[0]] == [tuple(row[:depth].tolist()) for row in codes]


def test_a_code_that_does_not_follow_is_a_key_error() -> None:
    index = PrefixIndex.build(np.array([[0, 1], [2, 0]]))
    assert index.descend(0, torch.tensor([0, 0]), torch.tensor([2, 0])).tolist() == [1, 0]
    with pytest.raises(KeyError, match="no item has"):
        index.descend(0, torch.tensor([0, 0]), torch.tensor([2, 1]))
    with pytest.raises(KeyError, match="no item has"):
        index.nodes(torch.tensor([[0, 0]]))


@pytest.mark.parametrize("codes", [np.zeros((0, 2), int), np.zeros((2, 0), int), np.zeros(3, int), np.array([[0, -1]])])
def test_what_is_no_table_of_codes_is_refused(codes: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError):
        PrefixIndex.build(codes)
