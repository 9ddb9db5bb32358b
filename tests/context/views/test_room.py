"""What does not fit is dropped: the oldest first, and counted."""

import logging

import numpy as np
import pytest

from onesearch.context.history import HistorySlots
from onesearch.context.views.room import Room
from onesearch.errors import UserError


def slots_of(event: list[list[int]]) -> HistorySlots:
    """Slots whose items and features tell which event they are of."""
    events = np.array(event, np.int64)
    features = np.where(events >= 0, events, 0)[..., None].astype(np.float32)
    return HistorySlots(events.astype(np.int32), events, features, np.zeros((len(events), 2, 0), np.float32))


def test_the_oldest_are_dropped_among_purchases_and_queries_together() -> None:
    room = Room(6)
    slots = slots_of([[30, 10, 20], [5, -1, -1], [7, 9, 8]])
    asked = np.array([[25, 15], [4, -1], [-1, -1]])
    fitted, kept = room.fit(slots, asked, np.array([4, 4, 6]))
    assert fitted.event.tolist() == [[30, -1, -1], [5, -1, -1], [-1, -1, -1]]
    assert kept.tolist() == [[25, -1], [4, -1], [-1, -1]]
    np.testing.assert_array_equal(fitted.item, fitted.event)
    assert fitted.features[:, :, 0].tolist() == [[30, 0, 0], [5, 0, 0], [0, 0, 0]]
    assert (room.dropped.value, room.affected.value, room.seen.value) == (6, 2, 3)


def test_the_order_of_what_is_kept_stays() -> None:
    fitted, _ = Room(2).fit(slots_of([[3, 1, 9, 2]]), np.zeros((1, 0), np.int64), np.array([0]))
    assert fitted.event.tolist() == [[3, 9, -1, -1]]


def test_nothing_changes_where_there_is_room_or_no_end_of_it() -> None:
    slots, asked = slots_of([[3, 1]]), np.array([[2]])
    for room in (Room(8), Room(None)):
        fitted, kept = room.fit(slots, asked, np.array([5]))
        assert fitted is slots and kept is asked and room.dropped.value == 0


def test_totals_are_told_once_and_then_counted_anew(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(5)
    for _ in range(2):
        room.fit(slots_of([[3, 1], [4, -1]]), np.zeros((2, 0), np.int64), np.array([4, 4]))
    with caplog.at_level(logging.WARNING):
        room.report("validation")
        room.report("validation")
    (record,) = caplog.records
    assert record.getMessage() == (
        "validation: 2 past purchases and queries, the oldest of 2 of 4 requests, did not fit into 5 positions"
    )


def test_a_backbone_too_small_for_the_query_is_told_at_once() -> None:
    Room(40).check(40)
    Room(None).check(1000)
    with pytest.raises(UserError, match=r"max_position_embeddings of the backbone.*need 41 positions: 40"):
        Room(40).check(41)
