"""Hour and weekday of known moments."""

from datetime import UTC, datetime

import numpy as np
import pytest
from view_logs import NO_SLOTS, MakeLog

from onesearch.context.views.time import Time
from onesearch.corpus import Requests
from onesearch.errors import UserError


def test_hour_and_weekday_are_those_of_the_calendar(make_log: MakeLog) -> None:
    moments = np.array([0, 86_399, 1_700_000_000, 1_709_251_199, -1])
    none = np.zeros(len(moments), np.int64)
    requests = Requests(none, none, none, moments, none, none, none, none, [""] * len(moments))
    found = Time(make_log()).read(requests, NO_SLOTS)["time_moment"]
    days = [datetime.fromtimestamp(moment, UTC) for moment in moments.tolist()]
    assert found.tolist() == [[day.hour, day.weekday()] for day in days]


def test_a_log_without_a_clock_says_which_column_is_missing(make_log: MakeLog) -> None:
    with pytest.raises(UserError, match=r"events\.parquet.*clock times.*'timestamp'.*leave 'time' out"):
        Time(make_log(clock=False))
