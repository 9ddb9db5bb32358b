"""The network: a list is judged item by item, frozen embeddings stay, and a small hand-made loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onesearch.reward.model import RewardConfig, RewardNetwork, listwise_loss, raw_logits

ITEMS, CONTENT = 9, 5


def network(**options: Any) -> RewardNetwork:
    torch.manual_seed(0)
    sizes = {
        "width": 16,
        "heads": 2,
        "text_vocabulary": 12,
        "level_sizes": [3, 3],
        "query": 4,
        "taste": 2,
        "content": CONTENT,
    }
    made = RewardNetwork(RewardConfig(**sizes, slot_features=4, cross=7, **options))
    codes = torch.from_numpy(np.column_stack([np.arange(ITEMS) // 3, np.arange(ITEMS) % 3]))
    return made.bind(torch.randn(ITEMS, CONTENT), codes)


def given(rows: int = 3, wide: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "items": torch.randint(0, ITEMS, (rows, wide), generator=random),
        "cross": torch.randn(rows, wide, 7, generator=random),
        "query_ids": torch.randint(0, 12, (rows, 3), generator=random),
        "query_mask": torch.ones(rows, 3, dtype=torch.bool),
        "query_vector": torch.randn(rows, 6, generator=random),
        "slot_items": torch.tensor([[1, 2], [4, -1], [-1, -1]])[:rows],
        "slot_features": torch.randn(rows, 2, 4, generator=random),
    }


def test_an_item_is_judged_the_same_whatever_stands_beside_it() -> None:
    model, whole = network(items=ITEMS, item_width=8).eval(), given()
    with torch.no_grad():
        logits = model(**whole).logits
        alone = model(**whole | {"items": whole["items"][:, 2:3], "cross": whole["cross"][:, 2:3]}).logits
    torch.testing.assert_close(logits[:, 2:3], alone)


def test_kept_vectors_judge_as_computed_ones() -> None:
    model = network(items=ITEMS, item_width=8).eval()
    with torch.no_grad():
        before = model(**given()).logits
        after = model.keep_vectors()(**given()).logits
    torch.testing.assert_close(before, after)


def test_an_empty_history_is_read_as_nothing() -> None:
    model, whole = network().eval(), given()
    with torch.no_grad():
        first = model(**whole).logits
        whole["slot_features"][1:] = whole["slot_features"][1:] * torch.tensor([[[1.0], [5.0]]])
        second = model(**whole).logits
    torch.testing.assert_close(first[:2], second[:2])
    assert torch.isfinite(first).all()


def train_a_little(model: RewardNetwork) -> None:
    labels = (torch.rand(3, 4, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(5):
        loss = model(**given(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_embeddings_stay_bit_for_bit_and_others_do_not(frozen: bool) -> None:
    model = network(items=ITEMS, item_width=8, frozen=frozen)
    assert model.own is not None and model.own_map is not None
    before, mapped = model.own.weight.detach().clone(), model.own_map.weight.detach().clone()
    train_a_little(model)
    assert torch.equal(before, model.own.weight) == frozen
    assert not torch.equal(mapped, model.own_map.weight)


def test_items_that_came_later_have_no_embedding_of_their_own() -> None:
    model = network(items=ITEMS - 2, item_width=8).eval()
    assert model.own is not None
    with torch.no_grad():
        before = model.item_vectors(torch.arange(ITEMS))
        model.own.weight.add_(torch.randn_like(model.own.weight))
        after = model.item_vectors(torch.arange(ITEMS))
    torch.testing.assert_close(before[-2:], after[-2:])
    assert not torch.allclose(before[:-2], after[:-2])


def test_both_is_the_product_of_click_and_conversion() -> None:
    found = raw_logits(torch.tensor([[0.3, -1.2, 0.7], [8.0, 9.0, 0.0]], dtype=torch.float64)).sigmoid()
    torch.testing.assert_close(found[:, 2], found[:, 0] * found[:, 1])


def test_the_loss_is_that_of_every_row_that_is_there() -> None:
    """Only one item, a logit of 0 everywhere: click log 2; both, at 1/4, -log 1/4; relevance of 1/2: log 2."""
    model, whole = network(), given(rows=1, wide=2)
    for layer in (model.outcome, model.relevance):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    whole["items"] = torch.tensor([[3, -1]])
    loss = model(**whole, labels=torch.tensor([[[1.0, 1.0, 0.5], [1.0, 1.0, 1.0]]])).loss
    assert loss.item() == pytest.approx(np.log(2) + np.log(4) + np.log(2), rel=1e-5)


def test_the_softmax_of_a_list_leaves_out_empty_places_and_lists_without_positives() -> None:
    logits, there = torch.tensor([[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]]), torch.tensor([[True, True, False]] * 2)
    labels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    wanted = -F.log_softmax(torch.tensor([1.0, 2.0]), 0)[0]
    torch.testing.assert_close(listwise_loss(logits, labels, there), wanted)


def test_calibrators_and_policy_begin_as_if_there_were_none() -> None:
    plain, other = network(), network(calibration="field", policy=True)
    with torch.no_grad():
        logits, items = torch.randn(3, 4, 3), given()["items"]
        torch.testing.assert_close(plain.probabilities(logits, items), other.probabilities(logits, items))
        weights = other.head_weights(torch.randn(3, 32))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
