import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantizers.nearest import Nearest, nearest, nearest_of_own

# A grid of small whole numbers makes real ties, which are exact in every precision.
grid = st.integers(-2, 2).map(float)


@settings(max_examples=50, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(0, 12), st.just(3)), elements=grid),
    centroids=arrays(np.float32, st.tuples(st.integers(1, 7), st.just(3)), elements=grid),
)
def test_equals_brute_force_with_ties_to_the_lowest_code(x: np.ndarray, centroids: np.ndarray) -> None:
    distance = np.square(x[:, None].astype(float) - centroids).sum(axis=2)
    np.testing.assert_array_equal(nearest(x, centroids), distance.argmin(axis=1))


def test_a_row_gets_the_same_code_in_any_company() -> None:
    rng = np.random.default_rng(0)
    centroids = rng.standard_normal((64, 48)).astype(np.float32)
    middle = (
        centroids[rng.integers(64, size=400)] + centroids[rng.integers(64, size=400)]
    ) / 2  # ties but for rounding
    together = nearest(middle, centroids)
    alone = np.array([nearest(row[None], centroids)[0] for row in middle])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(nearest(middle[::-1], centroids)[::-1], together)


def test_equal_centroids_give_the_lowest_code() -> None:
    rng = np.random.default_rng(1)
    centroids = np.repeat(rng.standard_normal((30, 16)).astype(np.float32), 4, axis=0)
    codes = nearest(rng.standard_normal((500, 16)).astype(np.float32), centroids)
    assert (codes % 4 == 0).all()


@settings(max_examples=50, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(0, 12), st.just(3)), elements=grid),
    centroids=arrays(np.float32, st.tuples(st.integers(1, 7), st.just(3)), elements=grid),
    data=st.data(),
)
def test_prices_are_added_and_margins_are_to_the_second_best(
    x: np.ndarray, centroids: np.ndarray, data: st.DataObject
) -> None:
    prices = data.draw(arrays(np.float32, len(centroids), elements=grid))
    cost = np.square(x[:, None].astype(float) - centroids).sum(axis=2) + prices
    codes, margin = Nearest(centroids, prices).codes_and_margins(x)
    np.testing.assert_array_equal(codes, cost.argmin(axis=1))
    np.testing.assert_array_equal(nearest(x, centroids, prices), codes)
    if len(centroids) > 1:
        two = np.sort(cost, axis=1)[:, :2]
        np.testing.assert_allclose(margin, two[:, 1] - two[:, 0], atol=1e-4)
    else:
        assert np.isinf(margin).all()


def test_each_row_among_its_own_centroids() -> None:
    rng = np.random.default_rng(2)
    centroids = rng.integers(-2, 3, (400, 20)).astype(np.float32)
    first = rng.integers(0, 380, 9000)
    count = rng.integers(1, 20, 9000)  # more pairs than are measured at once
    x = rng.integers(-2, 3, (9000, 20)).astype(np.float32)
    codes = nearest_of_own(x, centroids, first, count)
    for row in range(0, 9000, 7):
        own = centroids[first[row] : first[row] + count[row]]
        assert codes[row] == np.square(x[row] - own).sum(axis=1).argmin()
