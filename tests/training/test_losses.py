"""The terms of the loss against numbers worked out by hand."""

from math import exp, log

import pytest
import torch

from training.losses import adversarial_step, cross_entropy, distillation, example_mean, r_drop


def test_cross_entropy_and_its_focal_form() -> None:
    # e^0 : e^log 3 = 1 : 3, so p = .25 and .75
    logits = torch.tensor([[0.0, log(3)], [0.0, log(3)]])
    target = torch.tensor([0, 1])
    assert cross_entropy(logits, target).tolist() == pytest.approx([log(4), log(4 / 3)])
    # alpha (1 - p)^gamma: 2 x .75^3 = .84375, 2 x .25^3 = .03125
    focal = cross_entropy(logits, target, alpha=2, gamma=3)
    assert focal.tolist() == pytest.approx([0.84375 * log(4), 0.03125 * log(4 / 3)])


def test_distillation() -> None:
    student, teacher = torch.tensor([[0.0, 0.0]], requires_grad=True), torch.tensor([[0.0, log(3)]], requires_grad=True)
    # KL((1/4, 3/4) || (1/2, 1/2)) = .25 log .5 + .75 log 1.5
    value = distillation(student, teacher)
    assert value.item() == pytest.approx(0.25 * log(0.5) + 0.75 * log(1.5))
    value.sum().backward()
    assert student.grad is not None and student.grad.tolist()[0] == pytest.approx([0.25, -0.25])
    assert teacher.grad is None, "nothing flows into the teacher"
    # at tau = 2 the teacher is 1 : sqrt 3; tau^2 = 4
    p = 1 / (1 + 3**0.5)
    expected = 4 * (p * log(p / 0.5) + (1 - p) * log((1 - p) / 0.5))
    assert distillation(student.detach(), teacher, tau=2).item() == pytest.approx(expected, rel=1e-5)
    assert distillation(teacher, teacher).item() == pytest.approx(0, abs=1e-7)


def test_r_drop_is_the_mean_of_both_divergences() -> None:
    one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, log(3)]])
    there = 0.5 * log(0.5 / 0.25) + 0.5 * log(0.5 / 0.75)
    back = 0.25 * log(0.25 / 0.5) + 0.75 * log(0.75 / 0.5)
    assert r_drop(one, other).item() == pytest.approx((there + back) / 2)
    assert r_drop(one, other).item() == pytest.approx(r_drop(other, one).item())


def test_the_adversarial_step_has_the_length_epsilon() -> None:
    assert adversarial_step(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), 0.6).tolist() == [
        pytest.approx([0.36, 0]),
        pytest.approx([0, 0.48]),
    ]
    assert adversarial_step(torch.zeros(2, 2), 0.6).abs().sum() == 0


def test_every_example_counts_once_and_halves_of_a_batch_average_to_the_whole() -> None:
    value, example = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([0, 0, 0, 1])
    assert example_mean(value, example, 2).item() == pytest.approx((2 + 10) / 2)
    halves = [example_mean(value[:3], example[:3], 1), example_mean(value[3:], torch.tensor([0]), 1)]
    assert torch.stack(halves).mean().item() == pytest.approx(6)


def test_half_a_chance_costs_log_two() -> None:
    assert exp(-cross_entropy(torch.zeros(1, 2), torch.tensor([0])).item()) == pytest.approx(0.5)
