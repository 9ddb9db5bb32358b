"""The prefix index against a trie of Python dictionaries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onesearch.errors import UserError
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


def test_an_index_takes_some_twenty_bytes_an_item() -> None:
    codes = np.random.default_rng(0).integers(0, 256, (100_000, 4)).astype(np.int32)
    index = PrefixIndex.build(codes)
    arrays = [index.items, *index.code, *index.child, *index.below]
    assert index.nbytes == sum(array.nbytes for array in arrays) < 20 * len(codes) + 4 * 65_536
    assert {array.dtype for array in index.code} == {torch.uint8}
    child, code, _ = index.children(0, torch.zeros(1, dtype=torch.int64))
    assert child.dtype == code.dtype == torch.int64, "what the methods return is int64"
    assert index.nodes(torch.from_numpy(codes[:5]).long())[-1].dtype == torch.int64


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues(), st.sampled_from([1, 200, 30_000, 2**14, 2**19, 2**40]), st.randoms(use_true_random=False))
def test_codes_of_every_width_sort_as_their_rows(codes: NDArray[np.int32], factor: int, random) -> None:  # type: ignore[no-untyped-def]
    """Keys with room for the item's number, keys without, and keys of more than 62 bits, which are bytes."""
    wide = codes.astype(np.int64) * factor
    order = np.array([random.randrange(3) for _ in codes])
    index = PrefixIndex.build(wide, order)
    expected = sorted(range(len(codes)), key=lambda item: (wide[item].tolist(), order[item], item))
    assert index.items.tolist() == expected
    assert index.semantic_ids().tolist() == wide[expected].tolist()
    for mine, plain in zip(
        index.child + index.below, (narrow := PrefixIndex.build(codes, order)).child + narrow.below, strict=True
    ):
        assert mine.tolist() == plain.tolist()
    assert index.widest == narrow.widest


@pytest.mark.parametrize("bits", [58, 60, 62, 63, 80])
def test_the_widest_keys(bits: int) -> None:
    rng = np.random.default_rng(bits)
    codes = np.stack([rng.integers(0, 2 ** (bits - bits // 2), 50), rng.integers(0, 2 ** (bits // 2), 50)], 1)
    codes[25:, 0] = codes[:25, 0]
    codes[0] = [2 ** (bits - bits // 2) - 1, 2 ** (bits // 2) - 1]
    index = PrefixIndex.build(codes)
    assert index.semantic_ids().tolist() == sorted(codes.tolist())
    assert PrefixIndex.build(codes.astype(np.uint64)).semantic_ids().tolist() == sorted(codes.tolist())


def test_what_is_saved_is_mapped_again(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 300, (500, 3))
    index, path = PrefixIndex.build(codes), tmp_path / "made" / "prefix.safetensors"
    index.save(path)
    same = PrefixIndex.load(path)
    assert same.widest == index.widest and same.nbytes == index.nbytes
    for mine, saved in zip(index.code + index.child + index.below, same.code + same.child + same.below, strict=True):
        assert mine.dtype == saved.dtype and torch.equal(mine, saved)
    assert torch.equal(same.items, index.items)
    for mine, saved in zip(index.nodes(torch.from_numpy(codes)), same.nodes(torch.from_numpy(codes)), strict=True):
        assert torch.equal(mine, saved)
    assert str(path) in Path("/proc/self/maps").read_text(), "mapped, not read"
    index.save(path)
    assert torch.equal(same.items, index.items), "who has mapped the file before keeps what it had"


def test_a_flipped_bit_anywhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prefix.safetensors"
    PrefixIndex.build(np.array([[0, 1], [2, 0], [2, 3]])).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match=r"prefix\.safetensors.*build the prefix index"):
            PrefixIndex.load(path)
    path.write_bytes(whole)
    assert len(PrefixIndex.load(path)) == 3


def test_a_cut_missing_or_other_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "prefix.safetensors"
    with pytest.raises(UserError, match="no such file"):
        PrefixIndex.load(path)
    PrefixIndex.build(np.array([[0, 1], [2, 0]])).save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="copy the file again"):
            PrefixIndex.load(path)
    path.write_bytes(whole.replace(b'"format":"1"', b'"format":"0"'))
    with pytest.raises(UserError, match="format 1 is expected: '0'"):
        PrefixIndex.load(path)
    with pytest.raises(UserError):
        PrefixIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (np.zeros((0, 2), int), "N, L > 0"),
        (np.zeros((2, 0), int), "N, L > 0"),
        (np.zeros(3, int), "N, L > 0"),
        (np.zeros((2, 2)), "integers, not float64"),
        (np.zeros((2, 2), bool), "integers, not bool"),
        (np.array([[0, 1], [3, -1]]), "item 1 has code -1 at level 1"),
    ],
)
def test_what_is_no_table_of_codes_is_refused(codes: NDArray[np.int64], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PrefixIndex.build(codes)


def test_codes_and_orders_that_do_not_fit_are_refused() -> None:
    codes = np.array([[0, 1], [3, 1]])
    assert PrefixIndex.build(codes, level_sizes=(4, 2)).levels == 2
    with pytest.raises(ValueError, match="item 1 has code 3 at level 0: not from 0 to 2"):
        PrefixIndex.build(codes, level_sizes=(3, 2))
    with pytest.raises(ValueError, match="3 level sizes for codes of 2 levels"):
        PrefixIndex.build(codes, level_sizes=(4, 2, 1))
    with pytest.raises(ValueError, match="order must be"):
        PrefixIndex.build(codes, np.arange(3))
