"""The losses of the alignment, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from training.align_losses import decoupled_info_nce, info_nce, mixed, rank_margin, relevance_fit, semantic_loss

LN2, LN3 = math.log(2), math.log(3)


def flags(*rows: str) -> Tensor:
    """A mask as text: `x` is true."""
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def test_info_nce_of_one_positive_is_the_cross_entropy() -> None:
    scores = torch.tensor([[LN2, 0.0, 0.0], [0.0, 0.0, 0.0]])  # row 0: -log(2 / 4); row 1: -log(1 / 3)
    loss = info_nce(scores, flags("x..", ".x."), flags("...", "..."))
    assert loss.item() == pytest.approx((LN2 + LN3) / 2)
    expected = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, expected)


def test_an_ignored_column_is_no_negative_and_gets_no_gradient() -> None:
    scores = torch.tensor([[LN2, 0.0, 5.0]], requires_grad=True)  # -log(2 / 3)
    loss = info_nce(scores, flags("x.."), flags("..x"))
    loss.backward()
    assert loss.item() == pytest.approx(LN3 - LN2)
    assert scores.grad is not None
    assert scores.grad[0].tolist() == pytest.approx([2 / 3 - 1, 1 / 3, 0])


def test_where_positive_and_ignored_meet_the_column_is_positive() -> None:
    scores = torch.tensor([[LN2, 0.0, 0.0]])
    assert info_nce(scores, flags("x.."), flags("x..")).item() == pytest.approx(LN2)


def test_two_positives_compete_in_info_nce_and_not_in_the_decoupled_loss() -> None:
    scores = torch.tensor([[LN2, LN3, 0.0]])  # e^s: 2, 3 and the negative's 1
    positive, ignored = flags("xx."), flags("...")
    coupled = (math.log(6 / 2) + math.log(6 / 3)) / 2
    decoupled = (math.log(3 / 2) + math.log(4 / 3)) / 2
    assert info_nce(scores, positive, ignored).item() == pytest.approx(coupled)
    assert decoupled_info_nce(scores, positive, ignored).item() == pytest.approx(decoupled)


def test_with_one_positive_a_row_both_are_the_same() -> None:
    scores = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    positive, ignored = torch.eye(5, 7, dtype=torch.bool), torch.zeros(5, 7, dtype=torch.bool)
    ignored[:, 5] = True
    torch.testing.assert_close(
        decoupled_info_nce(scores, positive, ignored), info_nce(scores, positive, ignored), rtol=1e-5, atol=1e-6
    )


def test_a_row_without_negatives_costs_nothing_and_gives_finite_gradients() -> None:
    scores = torch.tensor([[1.0, 2.0]], requires_grad=True)
    loss = decoupled_info_nce(scores, flags("xx"), flags(".."))
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and torch.isfinite(scores.grad).all()


def test_the_margin_grows_with_the_steps_between_shown_and_bought() -> None:
    better, worse = torch.tensor([0.5, 0.5, 0.9]), torch.tensor([0.45, 0.45, 0.1])
    steps = torch.tensor([1, 3, 3])  # 0.1 - 0.05, 0.3 - 0.05, and far enough apart already
    assert rank_margin(better, worse, steps, margin=0.1).item() == pytest.approx((0.05 + 0.25 + 0) / 3)


def test_relevance_is_a_mean_squared_difference() -> None:
    assert relevance_fit(torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.75])).item() == pytest.approx((1 + 0.0625) / 2)


def test_a_mixture_has_unit_length_and_lies_between() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    halfway = mixed(one, other, torch.tensor([0.5]))
    torch.testing.assert_close(halfway, torch.tensor([[0.5, 0.5]]).sqrt())
    torch.testing.assert_close(mixed(one, other, torch.tensor([0.0])), other)


def test_semantic_negatives_by_hand() -> None:
    query = item = torch.tensor([[1.0, 0.0]])
    far, near = [[0.0, 1.0], [0.0, -1.0]], [[0.6, 0.8]]
    negatives = torch.tensor([[*far, *near]])
    shares = torch.tensor([[1.0, 1.0, 0.0]])  # each mixture is its first part; near: the near item itself
    # Cosines: the item 1; far 0, 0; near 0.6; mixed far 0, 0; mixed near 0.6.
    total = math.e + 4 + 2 * math.exp(0.6)
    loss = semantic_loss(query, item, negatives, flags("xxx"), shares, far=2, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(total) - 1, rel=1e-5)
    # Without the second far item, neither it nor what is mixed with it counts.
    loss = semantic_loss(query, item, negatives, flags("x.x"), shares, far=2, temperature=1.0)
    assert loss.item() == pytest.approx(math.log(math.e + 1 + 2 * math.exp(0.6)) - 1, rel=1e-5)
