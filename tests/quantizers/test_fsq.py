import numpy as np
import pytest
import torch

from quantizers import codebook_usage, reconstruction_error
from quantizers.fsq import FSQ, _round, _thresholds


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8])
def test_a_scalar_takes_all_its_values_and_the_thresholds_say_which(size: int) -> None:
    z = torch.linspace(-9, 9, 4001)[:, None]
    values = _round(z, torch.tensor([size]))[:, 0]
    allowed = (np.arange(size) - size // 2) / (size // 2)  # the paper's, in [-1, 1]
    np.testing.assert_allclose(np.unique(values.numpy().round(6)), allowed.round(6))
    digits = np.searchsorted(_thresholds(size), z[:, 0].numpy(), side="right")
    np.testing.assert_allclose(allowed[digits], values, atol=1e-6)


def test_three_values_worked_out_by_hand() -> None:
    """Three values, half = 1.001: the value changes where 1.001 tanh(z) is 1/2, at +- 0.5486."""
    np.testing.assert_allclose(_thresholds(3), [-0.54864, 0.54864], atol=1e-4)
    assert _round(torch.tensor([[-0.56], [-0.53], [0.53], [0.56]]), torch.tensor([3])).flatten().tolist() == [
        -1,
        0,
        0,
        1,
    ]


def test_gradients_are_those_before_rounding() -> None:
    z = torch.tensor([[0.3]], requires_grad=True)
    _round(z, torch.tensor([3])).sum().backward()
    assert z.grad is not None
    assert z.grad.item() == pytest.approx(1.001 * (1 - np.tanh(0.3) ** 2), rel=1e-5)


def vectors(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    strength = np.array([4, 2, 1, 0.5])
    return ((rng.standard_normal((n, 4)) * strength) @ np.random.default_rng(9).standard_normal((4, 20))).astype(
        np.float32
    )


def test_the_first_group_says_the_most_and_all_codes_are_used() -> None:
    x, other = vectors(2000), vectors(1000, seed=1)
    quantizer = FSQ(((5, 3), (5, 3)), hidden=(32,), steps=800, batch=256).fit(x)
    assert quantizer.level_sizes == (15, 15)
    codes = quantizer.encode(other)
    lost = [reconstruction_error(other, quantizer.decode(codes[:, :levels])) for levels in (1, 2)]
    assert lost[1] < lost[0] - 0.05
    assert lost[0] < 0.35
    swapped = quantizer.decode(np.column_stack([np.full(len(codes), 7), codes[:, 1]]))  # 7 is the middle: nothing said
    assert reconstruction_error(other, swapped) > lost[0]
    assert (codebook_usage(codes, quantizer.level_sizes) > 0.9).all()


def test_a_level_is_the_mixed_radix_of_its_scalars() -> None:
    quantizer = FSQ(((4, 3), (2,)), hidden=(), steps=5).fit(vectors(50))
    seen = []
    for first in range(12):
        quantizer.decode(np.array([[first, 0]]))
        seen.append(np.unravel_index(first, (4, 3)))
    assert len(set(seen)) == 12
    # with no hidden layer the decoder is linear: a step of one scalar is the same vector wherever it is made
    vector = quantizer.decode(np.array([[first, 0] for first in range(12)])).reshape(4, 3, -1)
    step = np.diff(vector, axis=0)
    np.testing.assert_allclose(step, np.broadcast_to(step[:1, :1], step.shape), atol=1e-4)
    step = np.diff(vector, axis=1)
    np.testing.assert_allclose(step, np.broadcast_to(step[:1, :1], step.shape), atol=1e-4)
