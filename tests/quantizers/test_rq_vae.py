import numpy as np
import pytest
import torch

from quantizers import level_entropy, reconstruction_error
from quantizers.learning import DECAY, MovingCodebooks, random_rows, sinkhorn, straight_through
from quantizers.network import apply_layers, layers_of, mlp
from quantizers.rq_vae import RQVAE


def curved(n: int, seed: int = 0) -> np.ndarray:
    """(n, 24) points of a curved surface of two dimensions: a job for an encoder that is not linear."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1, 1, (n, 2))
    waves = np.random.default_rng(99).standard_normal((2, 24))
    return np.sin(3 * u @ waves).astype(np.float32)


def test_the_autoencoder_earns_its_place() -> None:
    """Two numbers make these vectors up; a latent of two linear numbers could not say them, and a learned one can."""
    x, other = curved(3000), curved(1000, seed=1)
    quantizer = RQVAE((32, 32, 32), latent=2, hidden=(64,), steps=600, batch=256, learning_rate=3e-3).fit(x)
    of_two_axes = (
        1 - np.square(np.linalg.svd(x - x.mean(0), compute_uv=False)[:2]).sum() / np.square(x - x.mean(0)).sum()
    )
    codes = quantizer.encode(other)
    lost = [reconstruction_error(other, quantizer.decode(codes[:, :levels])) for levels in (1, 2, 3)]
    assert lost[0] > lost[1] > lost[2]
    assert lost[2] < of_two_axes / 2


def test_balanced_learning_uses_codes_more_evenly() -> None:
    rng = np.random.default_rng(0)
    crowd = rng.standard_normal((2700, 8)) * 0.2
    x = np.concatenate([crowd, 6 * rng.standard_normal((300, 8))]).astype(np.float32)
    entropy = {}
    for assignment in ("nearest", "sinkhorn"):
        quantizer = RQVAE((16, 16), latent=8, hidden=(32,), assignment=assignment, steps=400, batch=256).fit(x)
        entropy[assignment] = level_entropy(quantizer.encode(x), quantizer.level_sizes)[0]
    assert entropy["sinkhorn"] > entropy["nearest"] + 0.5


def test_sinkhorn_shares_out() -> None:
    distance = torch.rand((90, 9), generator=torch.Generator().manual_seed(0))
    distance[:, 0] *= 0.2  # the favourite of most
    plan = sinkhorn(distance)
    torch.testing.assert_close(plan.sum(dim=1), torch.ones(90))
    torch.testing.assert_close(plan.sum(dim=0), torch.full((9,), 10.0), atol=0.5, rtol=0)
    assert torch.bincount(distance.argmin(dim=1)).max() > 30
    assert torch.bincount(plan.argmax(dim=1)).max() <= 14
    assert torch.isfinite(sinkhorn(torch.zeros(3, 5))).all()
    assert torch.isfinite(sinkhorn(torch.tensor([[0.0, 1e12], [0.0, 1e-12]]))).all()


def test_a_codebook_moves_by_the_moving_average() -> None:
    """Two vectors a step, two codes: each has use 1 at first, and the first code gets both vectors, 1 and 2."""
    books = MovingCodebooks([np.array([[0.0], [9.0]], np.float32)], batch=2, balanced=(), seed=0)
    codes, sums = books.learn(torch.tensor([[1.0], [2.0]]))
    assert codes.tolist() == [[0], [0]]
    assert sums[0].tolist() == [[0.0], [0.0]]
    moved = (DECAY * 0 + (1 - DECAY) * 3) / (DECAY * 1 + (1 - DECAY) * 2)
    torch.testing.assert_close(books.codebooks[0], torch.tensor([[moved], [9.0]]))


def test_a_code_that_nobody_uses_starts_again_where_vectors_are() -> None:
    books = MovingCodebooks([np.array([[0.0], [90.0]], np.float32)], batch=2, balanced=(), seed=0)
    x = torch.tensor([[-1.0], [2.0]])
    steps = 0
    while books.codebooks[0][1] > 80 and steps < 400:
        books.learn(x)
        steps += 1
    assert 200 < steps < 400  # 0.99 ** 298 is less than 0.05
    for _ in range(600):
        books.learn(x)
    torch.testing.assert_close(books.codebooks[0].sort(dim=0).values, x, atol=0.1, rtol=0)


def test_gradients_pass_straight_through() -> None:
    z = torch.tensor([1.0, 2.0], requires_grad=True)
    value = straight_through(z, torch.tensor([5.0, 7.0]))
    assert value.tolist() == [5.0, 7.0]
    value.square().sum().backward()
    assert z.grad is not None
    assert z.grad.tolist() == [10.0, 14.0]


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (3, 8), (8, 8)])
def test_batches_bring_each_row_once_a_pass(n: int, batch: int) -> None:
    size = min(n, batch)
    a_pass = n // size
    for rows in [list(random_rows(n, batch, a_pass, seed)) for seed in range(5)]:
        together = np.concatenate(rows)
        assert all(len(part) == size and (np.diff(part) > 0).all() for part in rows)
        assert len(np.unique(together)) == len(together) == a_pass * size


def test_numpy_says_what_torch_says() -> None:
    torch.manual_seed(0)
    network = mlp((7, 5, 9, 3))
    x = np.random.default_rng(0).standard_normal((2500, 7)).astype(np.float32)
    expected = network(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(apply_layers(layers_of(network), x), expected, atol=1e-5)
    square = mlp((7, 4, 7))
    expected = x + square(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(apply_layers(layers_of(square), x, skip=True), expected, atol=1e-5)
