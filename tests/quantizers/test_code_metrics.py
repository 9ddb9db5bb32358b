import numpy as np
import pytest

from quantizers import (
    Collisions,
    codebook_usage,
    collisions,
    independent_coding_rate,
    level_entropy,
    prefix_usage,
    reconstruction_error,
)
from quantizers.metrics import prefix_ids

CODES = np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 3, 0], [2, 0, 0], [2, 0, 0]])
SIZES = (4, 4, 2)


def test_hand_worked_values() -> None:
    np.testing.assert_allclose(codebook_usage(CODES, SIZES), [2 / 4, 2 / 4, 2 / 2])
    np.testing.assert_allclose(prefix_usage(CODES, SIZES), [2 / 4, 3 / 16, 4 / 32])
    assert independent_coding_rate(CODES) == pytest.approx(2 / 6)
    assert collisions(CODES) == Collisions(sequences=4, shared_sequences=2, items_sharing=4, largest=2)
    third, sixth = -np.log2(1 / 3) / 3, -np.log2(1 / 6) / 6
    two_thirds, five_sixths = -np.log2(2 / 3) * 2 / 3, -np.log2(5 / 6) * 5 / 6
    np.testing.assert_allclose(level_entropy(CODES, SIZES), [third + two_thirds] + [sixth + five_sixths] * 2)


def test_extremes() -> None:
    every = np.stack(np.unravel_index(np.arange(32), SIZES), axis=1)
    assert codebook_usage(every, SIZES).tolist() == prefix_usage(every, SIZES).tolist() == [1, 1, 1]
    np.testing.assert_allclose(level_entropy(every, SIZES), np.log2(SIZES))
    assert independent_coding_rate(every) == 1
    none = np.zeros((0, 3), np.int32)
    assert prefix_usage(none, SIZES).tolist() == level_entropy(none, SIZES).tolist() == [0, 0, 0]
    assert collisions(none) == Collisions(0, 0, 0, 0)


def test_prefixes_are_numbered_in_their_order() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(5, size=(200, 4))
    for level in range(4):
        expected = np.unique(codes[:, : level + 1], axis=0, return_inverse=True)[1]
        np.testing.assert_array_equal(prefix_ids(codes)[:, level], expected)


def test_reconstruction_error_is_relative_to_the_mean_vector() -> None:
    x = np.array([[1, 1], [3, 1]], np.float32)
    assert reconstruction_error(x, x) == 0
    assert reconstruction_error(x, np.array([[2, 1], [2, 1]], np.float32)) == 1
    assert reconstruction_error(x, np.array([[1, 1], [2, 1]], np.float32)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="compared"):
        reconstruction_error(x, x[:1])


def test_codes_outside_their_level_are_refused() -> None:
    with pytest.raises(ValueError, match="outside its level"):
        codebook_usage(CODES, (4, 3, 2))
    with pytest.raises(ValueError, match="do not fit 2 levels"):
        prefix_usage(CODES, (4, 4))
