"""The monotone calibrator: integrals worked out by hand, and what no calibrator may change."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from onesearch.reward.calibration import REACH, MonotoneCalibrator, SmoothCalibration


class Line(nn.Module):
    """g(t) = factor t + offset."""

    def __init__(self, factor: float, offset: float) -> None:
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.factor * given[..., :1] + self.offset


def shaped(factor: float, offset: float, field: int = 0) -> MonotoneCalibrator:
    calibrator = MonotoneCalibrator(field)
    calibrator.slope = Line(factor, offset)
    return calibrator


@pytest.mark.parametrize("field", [0, 3])
def test_it_begins_as_the_identity(field: int) -> None:
    logits = torch.linspace(-30, 30, 61, dtype=torch.float64)
    given = torch.randn(61, 3) if field else None
    assert MonotoneCalibrator(field)(logits, given).tolist() == pytest.approx(logits.tolist(), abs=1e-6)


@pytest.mark.parametrize("field", [0, 3])
def test_a_constant_density_gives_a_straight_line(field: int) -> None:
    logits = torch.tensor([-3.0, 0.0, 0.5, 20.0], dtype=torch.float64)
    found = shaped(0.0, 1.5, field)(logits, torch.zeros(4, 3) if field else None)
    assert found.tolist() == pytest.approx([-7.5, 0.0, 1.25, 50.0])  # (ELU(1.5) + 1) z = 2.5 z


@pytest.mark.parametrize("field", [0, 3])
def test_the_integral_of_a_rising_density(field: int) -> None:
    """g(t) = t: ELU(t) + 1 is t + 1 above 0, and e^t below: z^2 / 2 + z, and e^z - 1."""
    logits = torch.tensor([2.0, 1.0, -1.0, -4.0], dtype=torch.float64)
    found = shaped(1.0, 0.0, field)(logits, torch.zeros(4, 3) if field else None)
    wanted = [4.0, 1.5, math.exp(-1) - 1, math.exp(-4) - 1]
    assert found.tolist() == pytest.approx(wanted, abs=2e-3)


def test_scale_and_shift_are_outside_the_integral() -> None:
    calibrator = shaped(0.0, 0.0)
    with torch.no_grad():
        calibrator.stretch.fill_(math.log(3))
        calibrator.bias.fill_(0.5)
    assert calibrator(torch.tensor([2.0])).item() == pytest.approx(7.5)  # 3 (2 + .5)


def wild(seed: int) -> MonotoneCalibrator:
    torch.manual_seed(seed)
    calibrator = MonotoneCalibrator()
    for parameter in calibrator.parameters():
        nn.init.normal_(parameter, std=0.7)
    return calibrator


@pytest.mark.parametrize("seed", range(5))
def test_whatever_the_weights_it_rises_everywhere(seed: int) -> None:
    logits = torch.linspace(-2 * REACH, 2 * REACH, 20_001, dtype=torch.float64)
    with torch.no_grad():
        assert (wild(seed)(logits).diff() > 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_a_million_pairs_and_the_auc_stay_exactly_as_they_were(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.random(2000) < 0.3
    logits = (rng.normal(size=2000) + label).astype(np.float32)
    with torch.no_grad():
        found = wild(seed)(torch.from_numpy(logits).double()).numpy()
    assert roc_auc_score(label, found) == roc_auc_score(label, logits)
    assert (np.argsort(found, kind="stable") == np.argsort(logits, kind="stable")).all()


def test_a_field_may_change_the_order_between_fields_and_not_within_one() -> None:
    torch.manual_seed(1)
    calibrator = MonotoneCalibrator(2)
    for parameter in calibrator.parameters():
        nn.init.normal_(parameter, std=0.3)
    logits = torch.linspace(-4, 4, 101, dtype=torch.float64)
    with torch.no_grad():
        one, other = (calibrator(logits, torch.tensor([field]).expand(101, 2)) for field in ([1.0, 0], [0, 1.0]))
    assert (one.diff() > 0).all() and (other.diff() > 0).all()
    assert not torch.allclose(one, other)
    with pytest.raises(ValueError, match="reads field vectors"):
        calibrator(logits)


def test_the_smooth_loss_is_the_squared_gap_of_each_bin() -> None:
    loss = SmoothCalibration()
    probability, label = torch.tensor([0.15, 0.15, 0.75, 0.75]), torch.tensor([0.0, 1.0, 1.0, 1.0])
    # two bins, each half of the rows: gaps .35 and .25
    assert loss(probability, label).item() == pytest.approx(0.5 * 0.35**2 + 0.5 * 0.25**2, rel=1e-5)


def test_the_smooth_loss_remembers_earlier_batches() -> None:
    loss = SmoothCalibration(keep=0.5)
    probability = torch.tensor([0.55, 0.55])
    loss(probability, torch.tensor([0.0, 0.0]))
    # half of the memory says 0, half of the batch says 1: the truth of the bin is 1/2
    assert loss(probability, torch.tensor([1.0, 1.0])).item() == pytest.approx(0.05**2, rel=1e-4)
