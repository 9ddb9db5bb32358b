import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantizers.nearest import nearest

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
