"""The last event of a user and an item before a request, against a slow reading of the log."""

from pathlib import Path

import numpy as np
import pytest
from reward_shows import ITEMS, one_visit, random_shows, write_shows

from onesearch.corpus import Requests
from onesearch.reward.past import Past


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_the_last_choice_before_the_visit(tmp_path: Path, seed: int) -> None:
    corpus = write_shows(tmp_path, random_shows(40, seed))
    events = np.arange(len(corpus.item))
    requests = Requests.of(corpus, events)
    items = np.tile(np.arange(len(ITEMS)), (len(events), 1))
    found = Past.of(corpus).last(requests, items)
    some = 0
    for row, event in enumerate(events):
        for item in range(len(ITEMS)):
            before = range(int(corpus.offsets[corpus.user[event]]), int(corpus.history_end[event]))
            chosen = [one for one in before if corpus.item[one] == item and corpus.kind[one] > 0]
            assert found[row, item] == (chosen[-1] if chosen else -1)
            some += bool(chosen)
    assert some > 100


def test_empty_places_and_empty_histories_know_nothing(tmp_path: Path) -> None:
    corpus = write_shows(tmp_path, one_visit())
    requests = Requests.of(corpus, np.array([len(corpus.item) - 1]))
    assert Past.of(corpus).last(requests, np.array([[-1, 0]])).tolist() == [[-1, -1]]
