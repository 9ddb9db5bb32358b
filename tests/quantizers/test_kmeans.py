import faiss
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from quantizers.kmeans import balanced_kmeans, kmeans
from quantizers.nearest import nearest


def clusters(n: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Forty clusters of very unequal size."""
    rng = np.random.default_rng(seed)
    which = np.minimum(rng.zipf(1.6, n) - 1, 39)
    return (rng.standard_normal((40, width))[which] + 0.4 * rng.standard_normal((n, width))).astype(np.float32)


def loss(x: np.ndarray, centroids: np.ndarray, codes: np.ndarray) -> float:
    return float(np.square(x - centroids[codes]).sum(axis=1).mean())


def test_hand_worked() -> None:
    x = np.array([[0], [2], [10], [12], [14]], np.float32)
    np.testing.assert_array_equal(np.sort(kmeans(x, 2), axis=0), [[1], [12]])


def test_centroids_are_the_means_of_their_vectors() -> None:
    x = clusters(3000)
    centroids = kmeans(x, 16, iterations=500)  # ends by itself
    codes = nearest(x, centroids)
    for code in range(16):
        np.testing.assert_allclose(centroids[code], x[codes == code].mean(axis=0), atol=1e-4)


def test_as_good_as_faiss() -> None:
    x = clusters(8000)
    ours, theirs = [], []
    for seed in range(4):
        centroids = kmeans(x, 64, iterations=20, seed=seed)
        ours.append(loss(x, centroids, nearest(x, centroids)))
        reference = faiss.Kmeans(16, 64, niter=20, seed=seed)
        reference.train(x)
        theirs.append(loss(x, reference.centroids, nearest(x, reference.centroids)))
    assert np.mean(ours) <= 1.02 * np.mean(theirs)


def test_one_vector_many_times_does_not_waste_centroids() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((3000, 4)), rng.standard_normal((60, 4)) + 5]).astype(np.float32)
    centroids = kmeans(x, 32, iterations=25)
    assert len(np.unique(nearest(x, centroids))) == 32


@pytest.mark.parametrize("balanced", [False, True])
def test_one_seed_gives_the_same_centroids_on_any_number_of_threads(balanced: bool) -> None:
    x = np.random.default_rng(0).standard_normal((40_000, 24)).astype(np.float32)  # several blocks, no structure
    runs = []
    for threads in (1, 2, 3):
        with threadpool_limits(limits=threads):
            faiss.omp_set_num_threads(threads)
            runs.append(balanced_kmeans(x, 64, 1.1, 4)[0] if balanced else kmeans(x, 64, 4))
    faiss.omp_set_num_threads(1)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


@pytest.mark.parametrize("slack", [1.0, 1.25])
def test_prices_alone_nearly_balance(slack: float) -> None:
    x = clusters(12_000)
    plain = np.bincount(nearest(x, kmeans(x, 32)), minlength=32) * 32 / len(x)
    centroids, prices = balanced_kmeans(x, 32, slack)
    load = np.bincount(nearest(x, centroids, prices), minlength=32) * 32 / len(x)
    assert plain.max() > 2
    assert load.max() < slack + 0.25
    assert loss(x, centroids, nearest(x, centroids, prices)) < 1.5 * loss(x, *((c := kmeans(x, 32)), nearest(x, c)))
