from __future__ import annotations

from pathlib import Path

import pytest
import torch
from histories import log_prob, made

from onesearch.model.sequence import SequenceGenerator


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_comes_later_changes_nothing_before(family: str) -> None:
    model = made(0, family=family).model
    items = torch.tensor([[-1, 0, 1, 2, 3]])
    labels = torch.tensor([[0, 1, 2, 3, 4]])
    other_items, other_labels = items.clone(), labels.clone()
    other_items[0, 3:], other_labels[0, 2:] = torch.tensor([7, 9]), torch.tensor([7, 9, 11])
    vectors = model.item_vectors()
    one, other = model.read(items, vectors), model.read(other_items, vectors)
    torch.testing.assert_close(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])
    # the loss of the first two positions is the same, whatever follows them
    labels[0, 2:], other_labels[0, 2:] = -1, -1
    torch.testing.assert_close(model(items, labels).loss, model(other_items, other_labels).loss)


def test_one_pass_trains_all_prefixes() -> None:
    """The loss of a history is the mean of the losses of its prefixes, each read alone."""
    model = made(1, family="gpt2").model
    items, labels = torch.tensor([[-1, 5, 6, 7]]), torch.tensor([[5, 6, 7, 8]])
    whole = model(items, labels)
    alone = [model(items[:, :end], labels[:, :end].where(torch.arange(end) == end - 1, -1)) for end in range(1, 5)]
    torch.testing.assert_close(whole.loss, torch.stack([one.loss for one in alone]).mean())
    torch.testing.assert_close(whole.nats, torch.stack([one.nats for one in alone]).mean())


@pytest.mark.parametrize("normalise", ["children", "level"])
def test_the_loss_is_that_of_the_search(normalise: str) -> None:
    case = made(2, normalise=normalise)
    items, labels = torch.tensor([[-1, 0, 1, 2]]), torch.tensor([[-1, -1, -1, 9]])
    assert float(case.model(items, labels).nats) == pytest.approx(-float(log_prob(case)[0, 9]), abs=1e-3)


def test_without_content_and_without_interest() -> None:
    model = made(3, interest=0.0).model
    output = model(torch.tensor([[-1, 0]]), torch.tensor([[0, 1]]))
    assert model.interest is None and output.interest_nats is None
    torch.testing.assert_close(output.loss, output.nats)


def test_a_query_is_read_where_it_was_asked() -> None:
    model = made(4, query=3).model
    items, vectors = torch.tensor([[-1, 0, 1]]), model.item_vectors()
    queries = torch.zeros(1, 3, 3)
    queries[0, 1] = 1.0
    plain, asked = model.read(items, vectors, torch.zeros(1, 3, 3)), model.read(items, vectors, queries)
    torch.testing.assert_close(plain[:, :1], asked[:, :1])
    assert not torch.allclose(plain[:, 1], asked[:, 1])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    case = made(5)
    case.model.save_pretrained(tmp_path)
    again = SequenceGenerator.from_pretrained(tmp_path).bind(case.model.bound).eval()
    items, labels = torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 2]])
    torch.testing.assert_close(again(items, labels).loss, case.model(items, labels).loss)


def test_the_gradient_reaches_every_weight() -> None:
    model = made(6, query=3).model.train()
    model(torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 2]]), torch.ones(1, 3, 3)).loss.backward()
    unused = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert unused == {"backbone.wte.weight"}, "tokens are never read"
