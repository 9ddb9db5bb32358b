import numpy as np
import pytest

from quantizers import ResidualKMeans, reconstruction_error
from quantizers.prefix_codebooks import PrefixCodebooks

SHARED = np.array([[100.0, 100.0], [0.0, 0.0]], np.float32)


def test_each_prefix_has_its_own_and_an_unseen_one_the_shared() -> None:
    x = np.array([[1, 0], [2, 0], [1, 0], [7, 7]], np.float32)
    books = PrefixCodebooks.fit(x, np.array([9, 9, 9, 4]), SHARED, size=4, iterations=5, seed=0)
    prefix = np.array([9, 9, 4, 5, 100])
    codes = books.encode(np.array([[1.9, 0], [0, 0], [0, 0], [90, 90], [1, 0]], np.float32), prefix)
    np.testing.assert_array_equal(books.counts(prefix), [2, 2, 1, 2, 2])
    expected = [[2, 0], [1, 0], [7, 7], [100, 100], [0, 0]]
    np.testing.assert_array_equal(books.decode(prefix, codes), expected)


def test_equals_brute_force_for_few_and_many_centroids() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6000, 8)).astype(np.float32)
    prefix = np.minimum(rng.zipf(1.4, 6000), 500)  # some with hundreds of vectors, most with one or two
    books = PrefixCodebooks.fit(x, prefix, x[:64], size=64, iterations=3, seed=0)
    codes = books.encode(x, prefix)
    for row in range(0, 6000, 11):
        place = np.searchsorted(books.prefixes, prefix[row]) + 1
        own = books.centroids[books.offsets[place] : books.offsets[place + 1]]
        assert codes[row] == np.square(x[row].astype(float) - own).sum(axis=1).argmin()


@pytest.mark.parametrize("balance", ["per_prefix", "per_code"])
def test_a_last_level_of_its_own_loses_less_and_is_decoded(balance: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 6)).astype(np.float32)
    plain = ResidualKMeans((8, 8, 8)).fit(x)
    own = ResidualKMeans((8, 8, 8), balance=balance).fit(x)  # type: ignore[arg-type]
    codes = own.encode(x)
    np.testing.assert_array_equal(codes[:, :2], plain.encode(x)[:, :2])
    errors = [reconstruction_error(x, quantizer.decode(quantizer.encode(x))) for quantizer in (own, plain)]
    assert errors[0] < errors[1]
    np.testing.assert_array_equal(own.encode(x[7:8]), codes[7:8])
    later = rng.standard_normal((500, 6)).astype(np.float32)
    own.decode(own.encode(later))
