"""Filters against counting the items below every prefix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onesearch.allowed import Allowed, item_mask
from onesearch.prefix import PrefixIndex


@st.composite
def filtered(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.bool_], list[int] | None]:
    """(N, L) codes, an (R, N) mask, and (B,) rows or None."""
    levels = draw(st.integers(1, 3))
    row = st.tuples(*[st.integers(0, draw(st.integers(0, 4))) for _ in range(levels)])
    codes = np.array(draw(st.lists(row, min_size=1, max_size=30)), np.int32)
    filters = draw(st.integers(1, 3))
    mask = st.lists(st.booleans(), min_size=filters * len(codes), max_size=filters * len(codes))
    rows = draw(st.none() | st.lists(st.integers(0, filters - 1), min_size=1, max_size=4))
    return codes, np.array(draw(mask)).reshape(filters, -1), rows


@settings(max_examples=100, deadline=None, derandomize=True)
@given(filtered())
def test_a_prefix_is_allowed_where_an_allowed_item_lies_below(
    case: tuple[NDArray[np.int32], NDArray[np.bool_], list[int] | None],
) -> None:
    codes, mask, rows = case
    index = PrefixIndex.build(codes)
    allowed = Allowed.of(index, torch.from_numpy(mask), None if rows is None else torch.tensor(rows))
    of_request = mask if rows is None else mask[rows]
    assert allowed.counts().tolist() == of_request.sum(1).tolist()
    for depth in range(index.levels + 1):
        prefixes = sorted({tuple(row[:depth].tolist()) for row in codes})
        nodes = torch.arange(len(prefixes)).expand(len(of_request), -1)
        item_of = [[tuple(row[:depth].tolist()) == prefix for row in codes] for prefix in prefixes]
        expected = (of_request[:, None] & np.array(item_of)).any(-1).tolist()
        assert allowed.below(depth, nodes).tolist() == expected
        assert allowed.below(depth, nodes[:, None, :, None])[:, 0, :, 0].tolist() == expected, "of any shape"
    places = torch.arange(len(codes)).expand(len(of_request), -1)
    assert allowed.items(places).tolist() == of_request[:, index.items.numpy()].tolist()


def test_one_filter_serves_any_number_of_requests() -> None:
    index = PrefixIndex.build(np.array([[0, 0], [0, 1], [1, 0]]))
    allowed = Allowed.of(index, torch.tensor([[False, True, False]]))
    assert allowed.below(1, torch.tensor([[0, 1]] * 3)).tolist() == [[True, False]] * 3
    assert allowed.counts().tolist() == [1]


def test_items_need_not_be_numbered_without_gaps() -> None:
    index = PrefixIndex.build(np.array([[0, 0], [1, 0]]))
    index = PrefixIndex(torch.tensor([7, 2]), index.code, index.child, index.below, index.widest)
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 7] = True
    assert Allowed.of(index, mask).below(1, torch.tensor([[0, 1]])).tolist() == [[True, False]]
    with pytest.raises(ValueError, match="about 5 items, the index holds item 7"):
        Allowed.of(index, mask[:, :5])


def test_a_filter_on_no_real_device_has_the_right_shapes() -> None:
    index = PrefixIndex.build(np.array([[0, 0], [0, 1], [1, 0]])).to("meta")
    allowed = Allowed.of(index, torch.ones(2, 3, dtype=torch.bool, device="meta"))
    below = allowed.below(2, torch.zeros(2, 5, 4, dtype=torch.int64, device="meta"))
    assert below.shape == (2, 5, 4) and below.dtype == torch.bool and below.is_meta


def test_masks_and_rows_that_do_not_fit_are_refused() -> None:
    index = PrefixIndex.build(np.array([[0], [1]]))
    mask = torch.ones(2, 2, dtype=torch.bool)
    for wrong in (mask.int(), mask[0], mask[:, :1]):
        with pytest.raises(ValueError, match="mask"):
            Allowed.of(index, wrong)
    for row in (torch.tensor([0, 2]), torch.tensor([-1]), torch.tensor([[0]])):
        with pytest.raises(ValueError, match="row must be"):
            Allowed.of(index, mask, row)


def test_allow_and_deny_lists() -> None:
    allow = [torch.tensor([0, 3]), None, torch.tensor([], dtype=torch.int64)]
    deny = [torch.tensor([3]), torch.tensor([1]), None]
    assert item_mask(4, allow, deny).tolist() == [[True, False, False, False], [True, False, True, True], [False] * 4]
    assert item_mask(2, deny=[None]).tolist() == [[True, True]]
    with pytest.raises(ValueError, match="request 1: item 4 is not among the 4 items"):
        item_mask(4, allow=[None, torch.tensor([1, 4])])
    with pytest.raises(ValueError, match="request 0: item -1"):
        item_mask(4, deny=[torch.tensor([-1])])
    for wrong in ((None, None), ([None], [None, None])):
        with pytest.raises(ValueError, match="one allow or deny list a request"):
            item_mask(4, *wrong)
