"""Losses that keep no logits: the same value and the same gradient as those that do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from onesearch.model import contrastive
from onesearch.model.contrastive import Bonus, ranged_logits, ranged_softmax_loss, softmax_loss

P, M, D, SCALE = 37, 50, 8, 2.0


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    queries = torch.randn(P, D, generator=random).requires_grad_()
    keys = torch.randn(M, D, generator=random).requires_grad_()
    return queries, keys, torch.rand(P, generator=random)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


@pytest.mark.parametrize("block", [M, 10 * M, 2**20])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_cross_entropy_over_all_keys(block: int, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "BLOCK", block)
    queries, keys, weight = drawn()
    target = torch.arange(P) % M
    bias = torch.linspace(-1, 1, M) if biased else None
    loss, nats = softmax_loss(queries, keys, target, weight, SCALE, bias)
    logit = SCALE * queries @ keys.T + (0 if bias is None else bias)
    plain = F.cross_entropy(logit, target, reduction="none")
    torch.testing.assert_close(nats, plain)
    expected = (weight * plain).sum()
    torch.testing.assert_close(loss, expected)
    for own, other in zip(gradients(3 * loss, queries, keys), gradients(3 * expected, queries, keys), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("block", [M, 10 * M, 2**20])
def test_some_places_may_have_a_bonus(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "BLOCK", block)
    queries, keys, weight = drawn()
    target, row = torch.arange(P) % M, torch.tensor([0, 0, 3, 20, 36])
    column, value = torch.tensor([0, 9, 3, 1, 40]), torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], requires_grad=True)
    loss, nats = softmax_loss(queries, keys, target, weight, SCALE, bonus=Bonus(row, column, value))
    logit = (SCALE * queries @ keys.T).index_put((row, column), value, accumulate=True)
    plain = F.cross_entropy(logit, target, reduction="none")
    torch.testing.assert_close(nats, plain)
    both = (gradients(3 * one, queries, keys, value) for one in (loss, (weight * plain).sum()))
    for own, other in zip(*both, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_a_bonus_in_a_range_has_a_gradient() -> None:
    queries, keys, weight = drawn()
    first, count = torch.arange(P), torch.full((P,), 4)
    bonus = torch.linspace(-1, 1, 4 * P).view(P, 4).requires_grad_()
    loss, _ = ranged_softmax_loss(queries, keys, first, count, first + 1, weight, SCALE, bonus)
    logit = SCALE * (queries.unsqueeze(1) * keys[first.unsqueeze(1) + torch.arange(4)]).sum(-1) + bonus
    expected = (weight * F.cross_entropy(logit, torch.ones(P, dtype=torch.int64), reduction="none")).sum()
    torch.testing.assert_close(loss, expected)
    both = (gradients(2 * one, queries, keys, bonus) for one in (loss, expected))
    for own, other in zip(*both, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_each_row_may_have_a_range_of_its_own() -> None:
    queries, keys, weight = drawn()
    first = torch.arange(P) % 30
    count = 1 + torch.arange(P) % 20
    target = first + count // 2
    loss, nats = ranged_softmax_loss(queries, keys, first, count, target, weight, SCALE)
    place = torch.arange(M)
    inside = (place >= first[:, None]) & (place < (first + count)[:, None])
    plain = F.cross_entropy((SCALE * queries @ keys.T).masked_fill(~inside, -torch.inf), target, reduction="none")
    torch.testing.assert_close(nats, plain, atol=1e-5, rtol=1e-5)
    expected = (weight * plain).sum()
    for own, other in zip(gradients(3 * loss, queries, keys), gradients(3 * expected, queries, keys), strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_a_range_of_one_key_costs_nothing() -> None:
    queries, keys, weight = drawn()
    one = torch.arange(P)
    loss, nats = ranged_softmax_loss(queries, keys, one, torch.ones_like(one), one, weight, SCALE)
    assert not nats.any()
    assert not any(gradient.any() for gradient in gradients(loss, queries, keys))


def test_ranged_logits_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    keys = torch.tensor([[1.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    found = ranged_logits(queries, keys, torch.tensor([0, 2]), torch.tensor([2, 1]), 10.0, 2)
    assert found.tolist() == [[10.0, 20.0], [100.0, -torch.inf]]


def test_low_precision_is_close_and_an_absurd_loss_finite() -> None:
    queries, keys, weight = drawn()
    queries, keys = F.normalize(queries, dim=1), F.normalize(keys, dim=1)
    target = torch.arange(P)
    exact, _ = softmax_loss(queries, keys, target, weight, SCALE)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = softmax_loss(queries, keys, target, weight, SCALE)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.01, atol=0.0)
    assert softmax_loss(1e4 * queries, keys, target, weight, SCALE)[0].isfinite()
