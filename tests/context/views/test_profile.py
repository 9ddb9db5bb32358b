"""Attributes of users: what is known, what is too rare to know, and what the log lacks."""

from pathlib import Path

import numpy as np
import pytest
from view_logs import NO_SLOTS, MakeLog

from onesearch.context.views.profile import UNKNOWN, Profile
from onesearch.corpus import Corpus, Requests
from onesearch.errors import UserError


def asked_by(corpus: Corpus, users: list[int]) -> Requests:
    none = np.zeros(len(users), np.int64)
    return Requests(none, np.array(users, np.int32), none, none, none, none, none, none, [""] * len(users))


def test_shared_values_are_numbered_and_a_value_of_one_user_is_unknown(make_log: MakeLog, tmp_path: Path) -> None:
    corpus = make_log()
    view = Profile.fit(corpus)
    assert view.vocabulary == [("age", "65+"), ("size", "2")]
    expected = [[2, 3], [2, UNKNOWN], [3, 0], [0, 0], [0, 0]]
    requests = asked_by(corpus, [0, 1, 2, 3, -1])
    assert view.read(requests, NO_SLOTS)["profile_values"].tolist() == expected
    view.save(tmp_path)
    again = Profile.load(corpus, tmp_path)
    assert again.sizes() == view.sizes() == {"values": 4}
    assert again.read(requests, NO_SLOTS)["profile_values"].tolist() == expected


def test_a_loaded_vocabulary_counts_what_is_new_as_unknown(make_log: MakeLog) -> None:
    corpus = make_log()
    view = Profile(corpus, [("size", "5")])
    assert view.read(asked_by(corpus, [0, 1]), NO_SLOTS)["profile_values"].tolist() == [[1, 1], [1, 2]]


def test_a_log_without_attributes_says_which_column_is_missing(make_log: MakeLog) -> None:
    with pytest.raises(UserError, match=r"users\.parquet.*users with attributes.*'attributes'.*leave 'profile' out"):
        Profile.fit(make_log(known=False))
