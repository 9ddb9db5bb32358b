"""Candidate lists: drawn by event alone, each item once, and what a log with impressions showed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reward_shows import one_visit, random_shows, write_shows

from onesearch.corpus import TRAIN, Corpus, Requests, make_split
from onesearch.reward.levels import BOUGHT, Interactions
from training.lists import (
    CandidateLists,
    Groups,
    Searches,
    draws,
    each_once,
    has_impressions,
    learnt_events,
    recalibrated,
)

NUMBERS = {"visit": 1, "own": 2, "query": 2, "category": 2, "random": 3, "beam": 0}


def lists(corpus: Corpus, **numbers: int) -> CandidateLists:
    training = make_split(corpus) == TRAIN
    return CandidateLists(corpus, training, Interactions.of(corpus), NUMBERS | numbers, 4, 7)


def test_a_list_begins_with_what_was_bought_and_has_each_item_once(shop: Corpus) -> None:
    events = learnt_events(shop)[::7]
    requests = Requests.of(shop, events)
    own = np.tile([3, 9, -1], (len(events), 1))
    found = lists(shop)(requests, own)
    assert (found[:, 0] == requests.target).all() and found.shape[1] == lists(shop).width == 11
    for row in found:
        there = row[row >= 0]
        assert len(set(there.tolist())) == len(there) > 1
    levels = Interactions.of(shop).levels(requests, found)
    assert (levels[:, 0] == BOUGHT).all()


def test_a_request_has_the_same_list_in_any_batch(shop: Corpus) -> None:
    events = learnt_events(shop)[:40]
    own = np.full((40, 2), 5)
    made = lists(shop)
    whole = made(Requests.of(shop, events), own)
    halves = [made(Requests.of(shop, part), own[:20]) for part in (events[20:], events[:20])]
    assert (whole == np.concatenate(halves[::-1])).all()


def test_items_of_the_same_query_were_bought_after_it_and_random_ones_seldom(shop: Corpus) -> None:
    events = learnt_events(shop)[::11]
    requests = Requests.of(shop, events)
    training = make_split(shop) == TRAIN
    bought = set(zip(shop.query[training].tolist(), shop.item[training].tolist(), strict=True))
    share = {}
    for kind in ("query", "random"):
        numbers = dict.fromkeys(NUMBERS, 0) | {kind: 3}
        found = lists(shop, **numbers)(requests, np.full((len(events), 1), -1))[:, 1:]
        rows, columns = np.nonzero(found >= 0)
        pairs = zip(shop.query[events][rows].tolist(), found[rows, columns].tolist(), strict=True)
        share[kind] = np.mean([pair in bought for pair in pairs])
    assert share["query"] > 0.7 and share["random"] < 0.4


def test_in_a_log_with_impressions_the_list_is_what_was_shown(tmp_path: Path) -> None:
    corpus = write_shows(tmp_path, one_visit())
    assert has_impressions(corpus)
    events = learnt_events(corpus)
    shown = {
        corpus.queries[corpus.query[event]]: Searches.of(corpus).items(np.array([event]), 5)[0] for event in events
    }
    assert shown["soap"].tolist() == [0, 2, 3, -1, -1]  # bought, clicked, shown
    assert shown["brush"].tolist() == [0, -1, -1, -1, -1]


def test_every_search_has_one_list(tmp_path: Path) -> None:
    corpus = write_shows(tmp_path, random_shows(30))
    events = learnt_events(corpus)
    assert len(events) == 30 == len(np.unique(corpus.session[events] * 100 + corpus.user[events]))
    none = dict.fromkeys(NUMBERS, 0)
    found = lists(corpus, **none)(Requests.of(corpus, events), np.full((30, 1), -1))
    assert found.shape == (30, 4) and (found >= 0).all()


def test_draws_are_even_and_depend_on_everything() -> None:
    found = draws(np.arange(4000), 8, 1)
    assert found.min() >= 0 and found.max() < 1
    assert np.histogram(found, 10, (0, 1))[0] == pytest.approx(np.full(10, 3200), rel=0.08)
    assert np.abs(np.corrcoef(found.T) - np.eye(8)).max() < 0.07
    assert not (draws(np.arange(10), 8, 2) == found[:10]).any()


def test_an_empty_group_gives_nothing() -> None:
    groups = Groups.of(np.array([0, 2, 2, -1]), np.array([10, 11, 12, 13]), 3)
    luck = np.array([[0.0, 0.99]] * 4)
    assert groups.draw(np.array([0, 1, 2, -1]), luck).tolist() == [[10, 10], [-1, -1], [11, 12], [-1, -1]]


def test_a_repeated_item_stays_where_it_is_first() -> None:
    assert each_once(np.array([[4, 2, 4, -1, 2, 7]])).tolist() == [[4, 2, -1, -1, -1, 7]]


def test_recalibrating_twice_is_where_it_began() -> None:
    probability = np.array([0.02, 0.4, 0.9])
    found = recalibrated(recalibrated(probability, 0.1, 0.01), 0.01, 0.1)
    np.testing.assert_allclose(found, probability)
