from __future__ import annotations

import math

import pytest
import torch

from onesearch.model.seen import Seen, once, prefix_bonus, range_bonus


def test_each_position_has_seen_what_stands_before_and_at_it_once() -> None:
    items = torch.tensor([[-1, 4, 7, 4], [-1, 5, -2, -2]])
    learnt = torch.tensor([[True, False, True, True], [True, True, False, False]])
    seen = Seen.of(items, learnt)
    assert once(items).tolist() == [[-1, 4, 7, -1], [-1, 5, -1, -1]]
    pairs = sorted(zip(seen.row.tolist(), seen.item.tolist(), strict=True))
    # positions in order: the two beginnings have seen nothing
    assert pairs == [(1, 4), (1, 7), (2, 4), (2, 7), (4, 5)]
    assert seen.row.tolist() == sorted(seen.row.tolist())


def test_a_prefix_is_the_mean_of_its_items() -> None:
    found = prefix_bonus(torch.tensor([0, 1, 2, 4]), torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.tensor(-3.0))
    expected = [math.log((4 - k + k * math.exp(-3)) / 4) for k in (0, 1, 2, 4)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_bonus_is_learnt() -> None:
    bonus = torch.tensor(-3.0, requires_grad=True)
    prefix_bonus(torch.tensor([0, 1, 4]), torch.tensor([4.0, 4.0, 4.0]), bonus).sum().backward()
    few = math.exp(-3) / (3 + math.exp(-3))
    assert float(bonus.grad) == pytest.approx(0 + few + 1, abs=1e-5)


def test_only_children_of_the_prefix_count() -> None:
    """Items 0..4 are below the children 0, 0, 1, 2, 2; position 0 has the children 0 and 1, position 1 the child 2."""
    seen = Seen(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 3, 3, 4]))
    found = range_bonus(
        seen,
        torch.tensor([0, 0, 1, 2, 2]),
        first=torch.tensor([0, 2]),
        count=torch.tensor([2, 1]),
        items=torch.tensor([2.0, 1.0, 2.0]),
        bonus=torch.tensor(-2.0),
    )
    assert found[0].tolist() == pytest.approx([math.log((1 + math.exp(-2)) / 2), 0], abs=1e-6)
    assert float(found[1, 0]) == pytest.approx(-2.0, abs=1e-6)
