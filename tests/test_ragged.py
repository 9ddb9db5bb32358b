"""Ragged rows behave as lists of lists do."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.ragged import Ragged, TokenColumn

ROWS = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(ROWS, st.data())
def test_it_is_a_list_of_lists(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of(rows)
    assert ragged.rows() == rows and len(ragged) == len(rows)
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    assert ragged.take(np.array(chosen, np.int64)).rows() == [rows[one] for one in chosen]
    most = data.draw(st.integers(0, 4))
    assert ragged.cut(most).rows() == [row[:most] for row in rows]
    other = [[7] * (place % 3) for place in range(len(rows))]
    beside = Ragged.side_by_side([ragged, Ragged.of(other), ragged])
    assert beside.rows() == [one + two + one for one, two in zip(rows, other, strict=True)]
    assert Ragged.stack([ragged, Ragged.of(other)]).rows() == rows + other
    table, filled = ragged.padded(-1)
    assert [row[used].tolist() for row, used in zip(table, filled, strict=True)] == rows
    assert (table[~filled] == -1).all()


def test_rows_with_one_number_become_one_row() -> None:
    merged = Ragged.of([[1], [2, 3], [], [4]]).merged(np.array([0, 0, 2, 3]), 5)
    assert merged.rows() == [[1, 2, 3], [], [], [4], []]


def test_a_column_tokenises_a_text_once_and_only_when_asked() -> None:
    seen: list[str] = []

    def encode(texts: Sequence[str]) -> Ragged:
        seen.extend(texts)
        return Ragged.of([[len(text)] * 2 for text in texts])

    column = TokenColumn(["a", "bb", "ccc", "dddd"], encode)
    assert column[np.array([2, 0, 2])].rows() == [[3, 3], [1, 1], [3, 3]]
    assert column[np.array([1, 2])].rows() == [[2, 2], [3, 3]]
    assert seen == ["a", "ccc", "bb"]
