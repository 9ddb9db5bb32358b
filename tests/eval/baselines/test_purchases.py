import numpy as np
import pytest

from eval.baselines.purchases import Purchases
from onesearch.corpus import TEST, Corpus, make_split, sample_requests


@pytest.fixture(scope="module")
def shop(quantized_run):
    corpus = Corpus.load(quantized_run / "corpus")
    return corpus, sample_requests(corpus, make_split(corpus), TEST, 30, 0)


def test_own_items_counts_and_dates_are_those_of_the_history(shop):
    corpus, requests = shop
    purchases = Purchases(corpus)
    own = purchases.before(requests)
    half_life = 30 * 86_400.0
    faded = purchases.faded_at(half_life, own.event, requests.time[own.row])
    for q in range(len(requests)):
        history = slice(requests.history_start[q], requests.history_end[q])
        items, times = corpus.item[history], corpus.time[history]
        mine = np.flatnonzero(own.row == q)
        assert sorted(own.item[mine]) == sorted(set(items))
        for p in mine:
            bought = times[items == own.item[p]]
            assert purchases.count[own.event[p]] == len(bought)
            assert purchases.first[own.event[p]] == bought.min()
            assert purchases.last[own.event[p]] == bought.max()
            assert faded[p] == pytest.approx(np.sum(0.5 ** ((requests.time[q] - bought) / half_life)), rel=1e-4)
