"""New semantic IDs beside those that are taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.errors import UserError
from onesearch.placement import full_sequences, place
from quantizers.uniqueness import append_rank_level

SIZES, RANKS = (2, 3), 4
learned_codes = st.tuples(st.integers(0, 1), st.integers(0, 2))


def codes(rows: list[tuple[int, int]]) -> np.ndarray:
    return np.array(rows, np.int32).reshape(-1, 2)


def test_worked_by_hand() -> None:
    taken = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 2, 0], [1, 0, 0]], np.int32)
    # 2 ranks a sequence: (0, 0) is full; both go on, one to (0, 1), then to (0, 2); (1, 0) has a rank left
    placed, moved = place(taken, codes([(0, 0), (1, 0), (0, 0)]), 2)
    assert placed.tolist() == [[0, 1, 1], [1, 0, 1], [0, 2, 1]]
    assert moved.tolist() == [True, False, True]
    assert full_sequences(np.concatenate([taken, placed]), 2) == (4, 4)


def test_a_rank_is_never_given_again() -> None:
    assert place(np.array([[0, 0, 2]], np.int32), codes([(0, 0)]), 4)[0].tolist() == [[0, 0, 3]], "not a gap below"


def test_no_room_names_the_codes_and_the_remedy() -> None:
    with pytest.raises(UserError, match=r"no room for 2 new items.*\[1\] \(a larger last_level than 1"):
        place(np.array([[1, 0, 0]], np.int32), codes([(1, 0), (1, 0)]), 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(learned_codes, max_size=12), st.lists(st.lists(learned_codes, max_size=4), max_size=4), st.booleans())
def test_batches_in_any_order_move_nobody_and_stay_unique(
    old: list[tuple[int, int]], batches: list[list[tuple[int, int]]], backwards: bool
) -> None:
    try:
        table = append_rank_level(codes(old), np.arange(len(old)), RANKS)
    except ValueError:
        return  # more than fit at all
    for batch in reversed(batches) if backwards else batches:
        before = table.copy()
        try:
            placed, moved = place(table, codes(batch), RANKS)
        except UserError:
            parents = np.bincount([*table[:, 0], *(one[0] for one in batch)], minlength=2)
            last_codes = max([*table[:, 1], *(one[1] for one in batch)]) + 1
            assert parents.max() > RANKS * last_codes, "it was refused only because there is no room"
            return
        table = np.concatenate([table, placed])
        np.testing.assert_array_equal(table[: len(before)], before)
        assert len(np.unique(table, axis=0)) == len(table) and (table[:, -1] < RANKS).all()
        np.testing.assert_array_equal(placed[~moved, :2], codes(batch)[~moved])
        np.testing.assert_array_equal(placed[:, 0], codes(batch)[:, 0])
