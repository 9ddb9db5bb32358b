import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from quantizers.balance import assign_within, capacity_of, next_prices, soft_counts


def test_capacities() -> None:
    assert [capacity_of(*case) for case in ((10, 4, 1.0), (100, 10, 1.1), (3, 8, 1.0), (0, 8, 1.0))] == [3, 11, 1, 1]


def test_who_loses_least_moves() -> None:
    # All three want code 0 (at 0), which holds one. Code 1 is at 4: 0 loses 16 by moving, 1 loses 8, 1.5 loses 4.
    x, centroids = np.array([[1], [0], [1.5]], np.float32), np.array([[0], [4]], np.float32)
    prices = np.zeros(2, np.float32)
    assert assign_within(2, 3, x.__getitem__, centroids, prices).tolist() == [0, 0, 1]
    assert assign_within(3, 3, x.__getitem__, centroids, prices).tolist() == [0, 0, 0]
    assert assign_within(3, 3, x.__getitem__, centroids, np.array([8.5, 0], np.float32)).tolist() == [1, 0, 1]


def test_too_little_room_is_told() -> None:
    x = np.zeros((5, 1), np.float32)
    with pytest.raises(ValueError, match="5 vectors do not fit 2 codes of at most 2 vectors"):
        assign_within(2, 5, x.__getitem__, np.zeros((2, 1), np.float32), np.zeros(2, np.float32))


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 60), size=st.integers(1, 12), spare=st.integers(0, 3), seed=st.integers(0, 999))
def test_no_code_is_over_its_capacity(rows: int, size: int, spare: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (rows, 2)).astype(np.float32)  # many equal vectors and ties
    centroids = rng.integers(-2, 3, (size, 2)).astype(np.float32)
    prices = rng.integers(0, 3, size).astype(np.float32)
    capacity = -(-rows // size) + spare
    codes = assign_within(capacity, rows, x.__getitem__, centroids, prices)
    assert np.bincount(codes, minlength=size).max(initial=0) <= capacity
    cost = np.square(x[:, None] - centroids).sum(axis=2) + prices
    open_codes = np.bincount(codes, minlength=size) < capacity
    chosen = cost[np.arange(rows), codes]
    assert (chosen[:, None] <= cost[:, open_codes]).all()  # nobody would rather have a code with room


def test_near_the_best_of_all_balanced_assignments() -> None:
    rng = np.random.default_rng(0)
    x, centroids = rng.standard_normal((256, 8)).astype(np.float32), rng.standard_normal((16, 8)).astype(np.float32)
    cost = np.square(x[:, None] - centroids).sum(axis=2)
    rows, seats = linear_sum_assignment(np.repeat(cost, 16, axis=1))  # sixteen seats a code
    best = cost[rows, seats // 16].sum()
    prices = np.zeros(16, np.float32)
    for temperature in np.geomspace(4, 0.05, 60):
        prices = next_prices(prices, soft_counts(x, centroids, prices, temperature), 16, temperature)
    codes = assign_within(16, 256, x.__getitem__, centroids, prices)
    greedy = assign_within(16, 256, x.__getitem__, centroids, np.zeros(16, np.float32))
    reached = [cost[np.arange(256), found].sum() for found in (codes, greedy)]
    assert best <= reached[0] < 1.03 * best
    assert reached[0] < reached[1]


def test_soft_counts_by_hand() -> None:
    x, centroids = np.array([[0], [1]], np.float32), np.array([[0], [1]], np.float32)
    share = 1 / (1 + np.exp(-1 / 2))  # of the near code at temperature 2
    demand = soft_counts(x, centroids, np.zeros(2, np.float32), 2.0)
    np.testing.assert_allclose(demand, [1, 1], rtol=1e-6)
    demand = soft_counts(x[:1], centroids, np.zeros(2, np.float32), 2.0)
    np.testing.assert_allclose(demand, [share, 1 - share], rtol=1e-6)
