"""Advantages worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from training.rl.advantages import deviation, group, list_rewards, position_aware, rank_weights


def test_the_groups_are_compared_with_themselves() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    apart = torch.tensor([0.75, -0.25, -0.25, -0.25])
    torch.testing.assert_close(group(rewards, scale="none")[0], apart)
    torch.testing.assert_close(group(rewards)[0], apart / (0.5 + 1e-4))  # deviation with G - 1: sqrt(.75 / 3)
    assert (group(rewards)[1] == 0).all(), "all alike: nothing to learn"
    torch.testing.assert_close(group(rewards, scale="batch")[0], apart / (rewards.std() + 1e-4))


def test_samples_that_do_not_exist_count_nowhere() -> None:
    rewards, there = torch.tensor([[1.0, 0.0, 9.0]]), torch.tensor([[True, True, False]])
    found = group(rewards, there, "none")
    torch.testing.assert_close(found, torch.tensor([[0.5, -0.5, 0.0]]))
    torch.testing.assert_close(deviation(rewards, there), torch.tensor([math.sqrt(0.5)]))


def test_different_samples_weighed_by_their_chance_give_the_gradient_of_the_expected_reward() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5, 9.0]])
    there = torch.tensor([[True, True, True, False]])
    logit = torch.tensor([[0.2, 1.5, -1.0, 0.0]], requires_grad=True)
    log_prob = logit.masked_fill(~there, -torch.inf).log_softmax(-1)
    chance = log_prob.detach().exp()
    (expected,) = torch.autograd.grad((log_prob.exp() * rewards).sum(), logit, retain_graph=True)
    advantage = group(rewards, there, "none", chance)
    surrogate = (advantage[there] * log_prob[there]).sum() / there.sum()
    torch.testing.assert_close(torch.autograd.grad(surrogate, logit)[0], expected)
    even = torch.full((1, 3), 1 / 3)
    torch.testing.assert_close(deviation(rewards[:, :3], there[:, :3], even), rewards[0, :3].std()[None])
    torch.testing.assert_close(group(rewards[:, :3], chance=even), group(rewards[:, :3]))


def test_tpma_as_published_rewards_a_later_match_after_a_wrong_first_code() -> None:
    """Two samples against (1, 2, 3), weights 2, 1, 1: one has the wrong first code and the rest right."""
    codes, truths = torch.tensor([[[1, 2, 9], [7, 2, 3]]]), torch.tensor([[[1, 2, 3]]])
    found = position_aware(codes, truths, weights=(2, 1, 1))
    # gains: (2, 1, 0) and (0, 1, 1); centred over the two, over deviations sqrt(2), 0, sqrt(.5)
    half = math.sqrt(0.5)
    expected = torch.tensor([[[half, 0.0, -half], [-half, 0.0, half]]])
    torch.testing.assert_close(found.advantages, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.gates, torch.tensor([[[1.0, 1.0, 1.0], [1.0, 0.0, 0.5]]]))
    strict = position_aware(codes, truths, weights=(2, 1, 1), prefix=True)
    # gains: (2, 1, 0) and nothing
    torch.testing.assert_close(strict.advantages[0, :, 1], torch.tensor([half, -half]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(strict.gates[0, 1], torch.tensor([1.0, 0.0, 0.0]))


def test_tpma_takes_the_best_of_several_truths_and_skips_empty_ones() -> None:
    codes = torch.tensor([[[1, 2], [3, 4]]])
    one = position_aware(codes, torch.tensor([[[1, 2], [-1, -1]]]), weights=(2, 2))
    both = position_aware(codes, torch.tensor([[[1, 2], [3, 9]]]), weights=(2, 2))
    assert (both.advantages[0, :, 0] == 0).all(), "both samples begin like a truth"
    assert one.advantages[0, 0, 0] > 0 > one.advantages[0, 1, 0]
    with pytest.raises(ValueError, match="weights"):
        position_aware(codes, codes, weights=(1,))


def test_the_last_code_of_five_earns_nothing_with_the_published_weights() -> None:
    codes = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 1, 1, 2]]])
    assert (position_aware(codes, codes[:, :1]).advantages[..., -1] == 0).all()


def test_a_list_earns_by_rank() -> None:
    weights = rank_weights(3)
    torch.testing.assert_close(weights * (1 + 1 / math.log2(3) + 0.5), torch.tensor([1.0, 1 / math.log2(3), 0.5]))
    relevance = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]])
    torch.testing.assert_close(list_rewards(relevance), torch.tensor([[weights[0], weights[2], 1.0]]))
