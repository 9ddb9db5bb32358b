from itertools import product

import faiss
import numpy as np
import pytest

from quantizers import ResidualKMeans, reconstruction_error
from quantizers.product import fit_parts


def correlated(n: int, width: int, seed: int = 0) -> np.ndarray:
    """Vectors whose directions have very different variance, mixed over all coordinates."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((width, width)))[0] * np.geomspace(1, 0.05, width)
    return (rng.standard_normal((n, width)) @ mix.T).astype(np.float32)


def test_codes_decode_to_the_nearest_of_all_reconstructions() -> None:
    x = correlated(3000, 8)
    quantizer = ResidualKMeans((4,), tail=(8, 8, 8, 8)).fit(x)
    assert quantizer.level_sizes == (4, 8, 8, 8, 8)
    some = x[::53]
    codes = quantizer.encode(some)
    tails = np.array(list(product(range(8), repeat=4)), np.int32)
    for row, code in zip(some, codes, strict=True):
        every = quantizer.decode(np.column_stack([np.full(len(tails), code[0], np.int32), tails]))
        distance = np.square(row - every).sum(axis=1)
        reached = np.square(row - quantizer.decode(code[None])[0]).sum()
        assert reached <= distance.min() * (1 + 1e-4) + 1e-6


def test_as_good_as_the_quantizer_of_faiss() -> None:
    x = correlated(2000, 16)
    reference = faiss.index_factory(16, "OPQ2,PQ2x5")
    reference.train(x)
    decoded = np.zeros_like(x)
    books = fit_parts(x, 2, 32, 25, 0)
    for centroids, prices in books:
        assert not prices.any()
        decoded += centroids[np.square(x[:, None] - centroids).sum(axis=2).argmin(axis=1)]
    ours, theirs = (reconstruction_error(x, found) for found in (decoded, reference.sa_decode(reference.sa_encode(x))))
    assert ours < 1.03 * theirs
    plain = faiss.index_factory(16, "PQ2x5")
    plain.train(x)
    assert ours < reconstruction_error(x, plain.sa_decode(plain.sa_encode(x)))  # the rotation helps


@pytest.mark.parametrize("width", [5, 7])
def test_a_width_that_the_parts_do_not_divide(width: int) -> None:
    x = correlated(3000, width)
    quantizer = ResidualKMeans((4,), tail=(16, 16)).fit(x)
    codes = quantizer.encode(x)
    assert quantizer.decode(codes).shape == x.shape
    lost = [reconstruction_error(x, quantizer.decode(codes[:, :levels])) for levels in (1, 3)]
    assert lost[1] < 0.6 * lost[0]
    tails = np.array(list(product(range(16), repeat=2)), np.int32)
    best = 0.0
    for row, code in zip(x[::300], codes[::300], strict=True):
        every = quantizer.decode(np.column_stack([np.full(256, code[0], np.int32), tails]))
        best += np.square(row - every).sum(axis=1).min()
    reached = np.square(x[::300] - quantizer.decode(codes[::300])).sum()
    assert reached < 1.05 * best


def test_few_vectors_are_taken_as_they_are() -> None:
    x = correlated(12, 6)
    quantizer = ResidualKMeans((1,), tail=(16, 16)).fit(x)
    np.testing.assert_allclose(quantizer.decode(quantizer.encode(x)), x, atol=1e-5)
