"""Running sums against sums over every event; bucket by bucket, and at the same cost for any length."""

import numpy as np
import pytest
import torch
from view_logs import MakeLog

from onesearch.context.views import running_sums
from onesearch.context.views.past import Past
from onesearch.context.views.running_sums import RunningSums
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS

PURCHASE = EVENT_KINDS.index("purchase")


def table_of(rng: np.random.Generator, items: int, rows: int) -> tuple[torch.Tensor, np.ndarray]:
    return torch.from_numpy(rng.standard_normal((20, 3), np.float32)), rng.integers(0, 20, (items, rows))


def before(corpus: Corpus, request: Requests) -> list[int]:
    """Purchases of the user before a request, by a slow reading."""
    span = range(int(request.history_start[0]), int(request.history_end[0]))
    return [event for event in span if corpus.kind[event] == PURCHASE]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_totals_are_the_sums_over_every_event(
    make_log: MakeLog, monkeypatch: pytest.MonkeyPatch, rows: int, seed: int
) -> None:
    monkeypatch.setattr(running_sums, "TOGETHER", 2)
    corpus = make_log(size=900, seed=seed)
    table, of_item = table_of(np.random.default_rng(seed), len(corpus.items), rows)
    sums = RunningSums(Past(corpus, corpus.kind == PURCHASE), table, of_item)
    requests = Requests.of(corpus, np.arange(len(corpus.item)))
    found, counts = sums.totals(requests)
    assert found.shape == (len(requests), rows, 3) and counts.max() > 3 * running_sums.BLOCK
    for row in range(0, len(requests), 7):
        events = before(corpus, requests.part(slice(row, row + 1)))
        expected = table.numpy()[of_item[corpus.item[events]]].sum(0)
        assert counts[row] == len(events)
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-4)


def test_buckets_are_ranges_of_places_that_double_and_miss_nothing(make_log: MakeLog) -> None:
    """64 + 64 + 37 purchases: two full blocks, and a tail of 1, 1, 2, 4, 8, 16 and 5 events."""
    corpus = make_log([(0, n % 7, "purchase", n, None, None) for n in range(166)])
    vectors = torch.eye(len(corpus.items))
    sums = RunningSums(Past(corpus, corpus.kind == PURCHASE), vectors, np.arange(len(vectors))[:, None])
    request = Requests.of(corpus, np.array([165]))
    found, counts = sums.buckets(request)
    assert counts[0].tolist() == [1, 1, 2, 4, 8, 16, 5, 64, 64, 0, 0, 0, 0, 0, 0]
    newest_first = corpus.item[:165][::-1]
    for bucket, (start, size) in enumerate(zip(np.cumsum(counts[0]) - counts[0], counts[0], strict=True)):
        expected = np.bincount(newest_first[start : start + size], minlength=len(vectors))
        np.testing.assert_array_equal(found[0, bucket, 0], expected)


def test_a_long_past_falls_into_the_last_bucket(make_log: MakeLog) -> None:
    corpus = make_log([(0, 0, "purchase", n, None, None) for n in range(130 * 64 + 1)])
    sums = RunningSums(Past(corpus, corpus.kind == PURCHASE), torch.ones(12, 1), np.zeros((12, 1), np.int64))
    found, counts = sums.buckets(Requests.of(corpus, np.array([130 * 64])))
    assert counts[0, 7:].tolist() == [64 * blocks for blocks in (1, 2, 4, 8, 16, 32, 64, 3)]
    np.testing.assert_array_equal(found[0, :, 0, 0], counts[0])


def test_someone_unknown_has_no_past(make_log: MakeLog) -> None:
    corpus = make_log()
    sums = RunningSums(Past(corpus, corpus.kind == PURCHASE), torch.ones(12, 1), np.zeros((12, 1), np.int64))
    none = np.zeros(1, np.int64)
    request = Requests(none - 1, none - 1, none - 1, none, none, none, none - 1, none - 1, [""])
    for found, counts in (sums.totals(request), sums.buckets(request)):
        assert not found.any() and not counts.any()


def test_a_log_without_such_events_has_empty_sums(make_log: MakeLog) -> None:
    corpus = make_log([(0, 1, "purchase", n, None, None) for n in range(5)])
    sums = RunningSums(Past(corpus, corpus.kind == 0), torch.ones(12, 2), np.zeros((12, 1), np.int64))
    found, counts = sums.totals(Requests.of(corpus, np.arange(5)))
    assert found.shape == (5, 1, 2) and not found.any() and not counts.any()


def test_what_is_kept_is_a_sum_a_block_and_not_one_an_event(make_log: MakeLog) -> None:
    corpus = make_log([(0, 1, "purchase", n, None, None) for n in range(64 * 5 + 63)])
    sums = RunningSums(Past(corpus, corpus.kind == PURCHASE), torch.ones(12, 2), np.zeros((12, 1), np.int64))
    assert sums.nbytes == 5 * 2 * 4
