"""The policy of the heads' weights: its rewards by hand, and that it learns who wants what."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from onesearch.reward.fusion import DirichletPolicy
from training.grade import GradeSettings, collapse, format_penalty, lambda_loss, learn_policy, list_ndcg
from training.reward_check import Outcomes, ndcg, ndcg_of_lists


def test_the_format_rule_begins_above_nine_tenths_and_below_a_hundredth() -> None:
    weights = torch.tensor([[0.25] * 4, [0.95, 0.02, 0.02, 0.01], [0.5, 0.5, 0.0, 0.0]])
    assert format_penalty(weights).tolist() == pytest.approx([0.0, 0.5, 0.1], abs=1e-5)


def test_ndcg_of_a_list_by_hand() -> None:
    """Gains 2 and 1 in places 2 and 3, where 1 and 2 would be best."""
    scores, gain = torch.tensor([[[3.0, 2.0, 1.0]]]), torch.tensor([[[0.0, 2.0, 1.0]]])
    wanted = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3))
    assert list_ndcg(scores, gain).item() == pytest.approx(wanted, rel=1e-6)
    assert list_ndcg(scores, 0 * gain).item() == 0


def test_lambda_loss_weighs_a_pair_by_what_exchanging_it_changes() -> None:
    scores, gain = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0]])
    spread = scores.detach().std()
    wanted = (1 - 1 / math.log2(3)) * torch.nn.functional.softplus(1 / spread)
    torch.testing.assert_close(lambda_loss(scores, gain, torch.ones(1, 2, dtype=torch.bool)), wanted)


def two_kinds(count: int = 400) -> Outcomes:
    """Half of the requests buy what the click head says, half what the relevance head says; the context tells which."""
    rng = np.random.default_rng(0)
    heads = rng.random((count, 6, 4)).astype(np.float32)
    heads[..., 3] /= 10  # the reward counts relevance ten times
    kind = np.arange(count) % 2
    wanted = np.where(kind[:, None] == 0, heads[..., 0], heads[..., 3])
    bought = wanted == wanted.max(1, keepdims=True)
    labels = np.stack([bought, bought, bought], -1).astype(np.float32)
    context = np.eye(2, dtype=np.float32)[kind].repeat(3, 1)
    items = np.tile(np.arange(6), (count, 1))
    return Outcomes(kind.astype(np.int32), items, labels[..., 0] * 2, labels, heads[..., :3], heads, context)


def test_it_learns_weights_for_each_kind_of_request() -> None:
    outcomes = two_kinds()
    torch.manual_seed(0)
    policy = DirichletPolicy(6)
    equal = ndcg(outcomes, outcomes.rewards(np.full(4, 0.25)))
    rewards = learn_policy(policy, outcomes, [0.25] * 4, settings=GradeSettings(warm=40, steps=60, rate=5e-3))
    with torch.no_grad():
        weights = policy.mean(torch.from_numpy(outcomes.context)).numpy()
    assert weights[0, 0] > 0.4 and weights[1, 3] > 0.4
    assert ndcg(outcomes, outcomes.rewards(weights)) > equal + 0.1
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10])


def test_without_the_format_rule_it_collapses_further() -> None:
    outcomes = two_kinds()
    largest = {}
    for rule in (1.0, 0.0):
        torch.manual_seed(0)
        policy = DirichletPolicy(6)
        settings = replace(GradeSettings(warm=150, steps=150, rate=1e-2, divergence=0.0), format=rule)
        learn_policy(policy, outcomes, [0.25] * 4, settings=settings)
        largest[rule] = collapse(policy, torch.from_numpy(outcomes.context))
    assert largest[0.0] > largest[1.0] + 0.01


def test_equal_scores_share_what_their_places_gain() -> None:
    outcomes = two_kinds(4)
    found = ndcg_of_lists(outcomes, np.zeros((4, 6)))
    discount = 1 / np.log2(np.arange(6) + 2)
    assert found == pytest.approx(np.full(4, discount.mean()))
