"""Fixed weights, and the Dirichlet distribution, against numbers worked out by hand and torch's own."""

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from onesearch.reward.fusion import LEAST, DirichletPolicy, dirichlet_divergence, dirichlet_log_density, fused


def test_the_reward_is_that_of_pars() -> None:
    heads = torch.tensor([[[0.2, 0.5, 0.1, 0.9], [0.0, 1.0, 0.0, 0.0]]])
    assert fused(heads, torch.ones(4)).tolist() == [pytest.approx([0.2 + 0.5 + 0.1 + 9.0, 1.0])]
    assert fused(heads, torch.tensor([1.0, 0, 2.0, 0.1])).tolist() == [pytest.approx([0.2 + 0.2 + 0.9, 0.0])]


def test_every_request_may_have_weights_of_its_own() -> None:
    heads = torch.rand(3, 5, 4)
    weights = torch.rand(3, 4)
    found = fused(heads, weights)
    for row in range(3):
        torch.testing.assert_close(found[row], fused(heads[row], weights[row]))


def test_the_density_of_a_beta_distribution() -> None:
    """Dirichlet(2, 3) is Beta(2, 3): Gamma(5) / (Gamma(2) Gamma(3)) x (1 - x)^2 = 12 * .25 * .5625 at 1/4."""
    found = dirichlet_log_density(torch.tensor([0.25, 0.75]), torch.tensor([2.0, 3.0])).exp()
    assert found.item() == pytest.approx(12 * 0.25 * 0.5625, rel=1e-5)


def test_density_and_divergence_are_those_of_torch() -> None:
    torch.manual_seed(0)
    one, other = (1.1 + 5 * torch.rand(7, 4) for _ in range(2))
    drawn = Dirichlet(one).sample()
    torch.testing.assert_close(dirichlet_log_density(drawn, one), Dirichlet(one).log_prob(drawn))
    torch.testing.assert_close(dirichlet_divergence(one, other), kl_divergence(Dirichlet(one), Dirichlet(other)))
    assert dirichlet_divergence(one, one).abs().max() < 1e-5


def test_a_policy_begins_with_the_same_mean_for_everybody() -> None:
    policy = DirichletPolicy(6)
    wanted = torch.tensor([0.2, 0.2, 0.5, 0.1])
    policy.start_at(wanted)
    context = torch.randn(9, 6)
    with torch.no_grad():
        torch.testing.assert_close(policy.mean(context), wanted.expand(9, 4), atol=1e-4, rtol=0)
        assert (policy(context) > LEAST).all()
