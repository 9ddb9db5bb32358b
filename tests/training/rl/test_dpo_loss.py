"""Listwise DPO against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.rl.dpo_loss import LEAST, listwise_dpo, reward_weights


def test_one_loser_is_dpo() -> None:
    """-log sigma(beta (r_w - r_l)) with a weight of 1."""
    winner, losers = torch.tensor([-2.0]), torch.tensor([[-3.0]])
    there, one = torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1)
    found = listwise_dpo(winner, losers, torch.tensor([-2.5]), torch.tensor([[-2.5]]), there, one, 0.5)
    assert float(found) == pytest.approx(-math.log(1 / (1 + math.exp(-0.5 * (0.5 + 0.5)))))


def test_two_losers_with_weights_and_a_guard() -> None:
    """-log sigma(-log(e^{a1 b (g + d1)} + e^{a2 b (g + d2)})), the winner being less likely than it was."""
    winner, losers = torch.tensor([-3.0]), torch.tensor([[-1.0, -4.0, -9.0]])
    reference, reference_losers = torch.tensor([-2.0]), torch.tensor([[-1.5, -3.0, -1.0]])
    there = torch.tensor([[True, True, False]])
    weights = torch.tensor([[2.0, 1.5, 7.0]])
    found = listwise_dpo(winner, losers, reference, reference_losers, there, weights, 0.2, guard=0.5)
    guard = 0.5 * 1.0
    one = math.exp(2.0 * 0.2 * (guard + (0.5 - -1.0))) + math.exp(1.5 * 0.2 * (guard + (-1.0 - -1.0)))
    assert float(found) == pytest.approx(-math.log(1 / (1 + one)), rel=1e-5)


def test_a_list_without_losers_costs_nothing_and_has_no_gradient() -> None:
    winner = torch.tensor([-1.0, -1.0], requires_grad=True)
    losers = torch.tensor([[-1.0], [-torch.inf]])
    there = torch.tensor([[True], [False]])
    found = listwise_dpo(winner, losers, winner.detach(), losers, there, torch.ones(2, 1), 0.1)
    assert found[1] == 0
    found.sum().backward()
    assert winner.grad is not None and winner.grad[1] == 0 and winner.grad[0] < 0


def test_weights_grow_towards_the_winner_and_stay_finite() -> None:
    weights = reward_weights(torch.tensor([1.0, 0.2]), torch.tensor([[0.0, 0.75, 1.0, 3.0], [0.0, 0.2, 0.5, 0.9]]), 1.5)
    torch.testing.assert_close(weights[0, :2], torch.tensor([2.0, 0.25**-1.5 + 1]))
    assert torch.isfinite(weights).all(), "R_l reaches max(R_w, 1)"
    assert float(weights[0, 2]) == pytest.approx(LEAST**-1.5 + 1) == float(weights[0, 3])
    assert float(weights[1, 0]) == pytest.approx(2.0), "max(R_w, 1)"
