import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantizers import append_rank_level, independent_coding_rate


def test_items_of_one_sequence_are_numbered_in_order() -> None:
    codes = np.array([[1, 1], [0, 2], [1, 1], [1, 1], [0, 2]])
    popularity = np.array([5, 7, 9, 5, 8])
    expected = [[1, 1, 1], [0, 2, 1], [1, 1, 0], [1, 1, 2], [0, 2, 0]]  # equal popularity: by row
    assert append_rank_level(codes, -popularity, size=3).tolist() == expected


def test_the_overflow_moves_to_the_nearest_last_code_with_room() -> None:
    # Last code 2 holds five items and has room for two. Codes 1 and 3 are nearest, 1 first and with one place left.
    codes = np.array([[7, 2]] * 5 + [[7, 1], [7, 3], [7, 0], [7, 4]])
    result = append_rank_level(codes, np.arange(9), size=2)
    assert result[:2].tolist() == [[7, 2, 0], [7, 2, 1]]
    assert result[2:5].tolist() == [[7, 1, 1], [7, 3, 1], [7, 0, 1]]
    assert result[5:].tolist() == [[7, 1, 0], [7, 3, 0], [7, 0, 0], [7, 4, 0]]


def test_two_overfull_sequences_do_not_take_the_same_place() -> None:
    codes = np.array([[0]] * 3 + [[2]] * 3 + [[1], [4]])
    result = append_rank_level(codes, np.arange(8), size=2)
    assert result[[2, 5]].tolist() == [[1, 1], [3, 0]]  # code 1 has one place left, which code 0 takes


def test_without_room_the_remedy_is_told() -> None:
    codes = np.array([[7, 0]] * 4 + [[7, 1]] + [[3, 1]])
    with pytest.raises(ValueError, match=r"5 items share the codes \[7\].* a size of at least 3"):
        append_rank_level(codes, np.arange(6), size=2)
    assert independent_coding_rate(append_rank_level(codes, np.arange(6), size=3)) == 1


@settings(max_examples=150, deadline=None)
@given(data=st.data(), levels=st.integers(1, 3), items=st.integers(0, 40), size=st.integers(1, 5))
def test_properties(data: st.DataObject, levels: int, items: int, size: int) -> None:
    codes = data.draw(arrays(np.int32, (items, levels), elements=st.integers(0, 3)))
    order = data.draw(arrays(np.int64, items, elements=st.integers(-3, 3)))
    last_codes = int(codes[:, -1].max()) + 1 if items else 0
    _, families = np.unique(codes[:, :-1], axis=0, return_counts=True) if levels > 1 else (None, np.array([items]))
    if items and families.max() > size * last_codes:
        with pytest.raises(ValueError, match="no room"):
            append_rank_level(codes, order, size)
        return
    result = append_rank_level(codes, order, size)
    assert result.shape == (items, levels + 1)
    assert result.dtype == np.int32
    assert len(np.unique(result, axis=0)) == items  # unique
    assert ((result[:, -1] >= 0) & (result[:, -1] < size)).all()
    np.testing.assert_array_equal(result[:, : levels - 1], codes[:, : levels - 1])  # only the last code may change
    assert (result[:, levels - 1] < last_codes).all()
    for sequence in np.unique(codes, axis=0):
        members = np.flatnonzero((codes == sequence).all(axis=1))
        stay = members[np.argsort(order[members], kind="stable")][:size]
        np.testing.assert_array_equal(result[stay, :levels], codes[stay])
        np.testing.assert_array_equal(result[stay, -1], np.arange(len(stay)))  # the first in order has rank 0
        assert (result[np.setdiff1d(members, stay), levels - 1] != sequence[-1]).all()
    np.testing.assert_array_equal(result, append_rank_level(codes, order, size))
