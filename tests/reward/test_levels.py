"""Interaction levels and calibrated rates against a log that was read by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from reward_shows import event, one_visit, write_shows

from onesearch.corpus import Corpus, Requests
from onesearch.reward.levels import (
    Interactions,
    Rates,
    category_prefixes,
    leaf_categories,
    log_count_rate,
    shared_category,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_shows(tmp_path_factory.mktemp("levels"), one_visit())


def bought_soap(corpus: Corpus) -> Requests:
    (row,) = np.flatnonzero((corpus.kind == 3) & (corpus.query >= 0))
    return Requests.of(corpus, np.array([row]))


def test_every_level_is_what_the_visit_says(corpus: Corpus) -> None:
    items = np.array([[0, 1, 2, 3, 4, 5, -1]])
    found = Interactions.of(corpus).levels(bought_soap(corpus), items)
    # bought; the other soap, bought later in the visit; clicked; shown; other categories; nothing there
    assert found.tolist() == [[2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0]]


def test_the_same_category_and_not_shown_is_a_level_of_its_own(tmp_path: Path) -> None:
    events = [row for row in one_visit() if row["item_id"] != "i1"]
    corpus = write_shows(tmp_path, events)
    assert Interactions.of(corpus).levels(bought_soap(corpus), np.array([[1]])) == pytest.approx(0.2)


def test_another_visit_with_the_same_query_says_nothing(tmp_path: Path) -> None:
    corpus = write_shows(tmp_path, [*one_visit(), event("ann", 3, "purchase", 9000, "soap", "9")])
    first = np.flatnonzero((corpus.kind == 3) & (corpus.item == 0))
    assert Interactions.of(corpus).levels(Requests.of(corpus, first), np.array([[3]])) == pytest.approx(0.5)


def test_categories_are_paths_and_an_item_without_one_is_like_no_other(corpus: Corpus) -> None:
    leaf = leaf_categories(corpus)
    assert leaf[0] == leaf[1] != leaf[2] == leaf[3] and leaf[5] == -1
    prefixes = category_prefixes(corpus)
    assert prefixes[0, 0] == prefixes[2, 0] and prefixes[0, 1] != prefixes[2, 1]
    assert prefixes[4, 1] == -1 and (prefixes[5] == -1).all()


def test_rates_are_ratios_of_logarithms(corpus: Corpus) -> None:
    rates = Rates.of(corpus, np.arange(len(corpus.item)))
    # item 0 was shown twice, clicked once and bought once; item 3 was shown once and not clicked
    assert rates.click[0] == pytest.approx(np.log(2) / np.log(3))
    assert rates.conversion[0] == pytest.approx(1.0)
    assert rates.click[3] == 0.0
    # item 5 was never shown: all clicks over all impressions, in logarithms
    usual = (np.log(2) + np.log(2)) / (np.log(3) + 2 * np.log(2))
    assert rates.click[5] == pytest.approx(usual, rel=1e-6)


def test_a_reward_is_the_level_times_the_harmonic_mean_of_both_rates() -> None:
    rates = Rates(np.array([0.5, 0.0], np.float32), np.array([0.25, 0.0], np.float32))
    found = rates.rewards(np.array([[2.0, 1.0, 2.0]], np.float32), np.array([[0, 1, -1]]))
    assert found[0].tolist() == pytest.approx([2 * 2 * 0.125 / 0.75, 0.0, 0.0])


def test_in_a_log_of_purchases_every_rate_is_one(tmp_path: Path) -> None:
    corpus = write_shows(tmp_path, [event("ann", item, "purchase", item, "soap", "1") for item in (0, 1, 1)])
    rates = Rates.of(corpus, np.arange(3))
    assert (rates.click[:2] == 1).all() and (rates.conversion[:2] == 1).all()
    levels = np.array([[2.0, 1.5]], np.float32)
    assert rates.rewards(levels, np.array([[0, 1]])).tolist() == [[2.0, 1.5]]


def test_no_rate_is_above_one() -> None:
    assert log_count_rate(np.array([5.0]), np.array([2.0])).tolist() == [1.0]


def test_the_share_of_a_path_counts_from_the_root_on() -> None:
    path = np.array([[0, 1, 2], [0, 1, 3], [0, 4, -1], [5, 6, 7]])
    np.testing.assert_allclose(shared_category(path, path[0]), [1, 2 / 3, 1 / 3, 0])
    assert shared_category(path[:1], np.array([-1, -1, -1])) == 0


def test_prefixes_are_equal_where_all_above_is(corpus: Corpus) -> None:
    items = corpus.items.head(3).with_columns(pl.Series("categories", [["a", "x"], ["b", "x"], ["a"]]))
    path = category_prefixes(replace(corpus, items=items))
    assert path[0, 1] != path[1, 1] and path[0, 0] == path[2, 0] and path[2, 1] == -1
