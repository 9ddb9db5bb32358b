import numpy as np
import pytest

from quantizers import ResidualKMeans, reconstruction_error
from quantizers.rq_kmeans_plus import RQKMeansPlus


def vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hidden = np.sin(rng.uniform(-1, 1, (n, 2)) @ np.random.default_rng(7).standard_normal((2, 24)) * 2)
    return (hidden + 0.02 * rng.standard_normal((n, 24))).astype(np.float32)


def test_it_begins_as_residual_kmeans_and_ends_better() -> None:
    x = vectors(1500)
    quantizer = RQKMeansPlus((16, 16, 16), hidden=64, steps=500, batch=256, learning_rate=3e-3).fit(x)
    plain = ResidualKMeans((16, 16, 16)).fit(x)
    at_first = reconstruction_error(x, plain.decode(plain.encode(x)))
    at_last = reconstruction_error(x, quantizer.decode(quantizer.encode(x)))
    assert quantizer.start_error == pytest.approx(at_first, rel=1e-4)
    assert quantizer.error == at_last
    assert at_last < 0.9 * at_first
    other = vectors(1500, seed=1)
    assert reconstruction_error(other, quantizer.decode(quantizer.encode(other))) < reconstruction_error(
        other, plain.decode(plain.encode(other))
    )


def test_it_is_never_worse_than_its_start() -> None:
    """A learning rate that only does harm: the start is kept, codes and all."""
    x = vectors(400)
    quantizer = RQKMeansPlus((8, 8), hidden=8, steps=20, learning_rate=0.99).fit(x)
    assert quantizer.error == quantizer.start_error
    np.testing.assert_array_equal(quantizer.encode(x), ResidualKMeans((8, 8)).fit(x).encode(x))


def test_a_level_has_no_more_codes_than_there_are_residuals() -> None:
    x = np.repeat(vectors(5), 3, axis=0)
    quantizer = RQKMeansPlus((8, 4), hidden=8, steps=20).fit(x)
    assert quantizer.level_sizes == (8, 4)
    assert len(quantizer.codebooks[0]) == 5
    with pytest.raises(ValueError, match="code 5 of level 0"):
        quantizer.decode(np.array([[5, 0]]))
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-3)
