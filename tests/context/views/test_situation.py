"""Place and device of a request, numbered when a model is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from view_logs import NO_SLOTS, MakeLog

from onesearch.context.views.situation import Situation
from onesearch.corpus import Requests
from onesearch.errors import UserError


def test_names_are_numbered_by_how_often_they_occur_and_kept(make_log: MakeLog, tmp_path: Path) -> None:
    corpus = make_log()
    view = Situation.fit(corpus, "place")
    count = {name: int((corpus.place == number).sum()) for number, name in enumerate(corpus.places)}
    assert view.names == sorted(corpus.places, key=lambda name: -count[name]) and len(view.names) == 3
    requests = Requests.of(corpus, np.arange(50))
    numbers = view.read(requests, NO_SLOTS)["place_value"]
    assert [view.names[number - 1] for (number,) in numbers] == [corpus.places[place] for place in requests.place]
    view.save(tmp_path)
    again = Situation.load(corpus, "place", tmp_path)
    assert again.sizes() == view.sizes() == {"values": 4}
    np.testing.assert_array_equal(again.read(requests, NO_SLOTS)["place_value"], numbers)


def test_what_is_not_said_or_was_never_seen_is_unknown(make_log: MakeLog) -> None:
    corpus = make_log()
    requests = Requests.of(corpus, np.arange(50))
    said = Situation.fit(corpus, "device").read(requests, NO_SLOTS)["device_value"]
    np.testing.assert_array_equal(said[:, 0], requests.device + 1)  # one device, and nothing said
    assert set(said[:, 0].tolist()) == {0, 1}
    other = Situation(corpus, "device", ["kiosk"])
    assert not other.read(requests, NO_SLOTS)["device_value"].any()


def test_a_log_without_says_which_column_is_missing(make_log: MakeLog) -> None:
    corpus = replace(make_log(), places=[], devices=[])
    with pytest.raises(UserError, match=r"events\.parquet.*events with a device.*'device'.*leave 'device' out"):
        Situation.fit(corpus, "device")
