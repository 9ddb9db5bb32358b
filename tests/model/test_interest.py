from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from onesearch.model.interest import InterestHead


def test_all_items_are_negatives_of_each_other() -> None:
    torch.manual_seed(0)
    head, items = InterestHead(6, 4, 0.5), F.normalize(torch.randn(9, 4), dim=1)
    interest, target = head(torch.randn(5, 6)), torch.tensor([0, 3, 3, 8, 1])
    assert torch.allclose(interest.norm(dim=1), torch.ones(5))
    loss, nats = head.loss(interest, items, target, torch.full((5,), 0.2))
    expected = F.cross_entropy(interest @ items.T / 0.5, target, reduction="none")
    torch.testing.assert_close(nats, expected)
    torch.testing.assert_close(loss, expected.mean())


def test_drawn_negatives_stand_for_all_of_them() -> None:
    """With 40 of 1,000 items drawn, the sum over the draws estimates the sum over all: on average the same loss."""
    torch.manual_seed(0)
    items = F.normalize(torch.randn(1000, 4), dim=1)
    head = InterestHead(4, 4, 1.0, negatives=40).train()
    interest, target, weight = F.normalize(torch.randn(2, 4), dim=1), torch.tensor([4, 7]), torch.full((2,), 0.5)
    sampled = torch.stack([head.loss(interest, items, target, weight)[0] for _ in range(300)]).mean()
    assert float(sampled) == pytest.approx(float(head.eval().loss(interest, items, target, weight)[0]), abs=0.05)


def test_where_it_is_judged_all_items_count() -> None:
    items = F.normalize(torch.randn(50, 4), dim=1)
    head = InterestHead(4, 4, 1.0, negatives=3).eval()
    _, nats = head.loss(torch.zeros(1, 4), items, torch.tensor([4]), torch.ones(1))
    assert float(nats) == pytest.approx(math.log(50), rel=1e-5)
