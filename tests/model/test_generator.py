"""The generator: what the loss is made of, gradients, what a snapshot changes, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch
from catalogues import batch, code_log_prob, random_batch, random_codes, random_generator
from transformers import AutoModel

from onesearch.model import Generator

SIZES = (4, 5, 6)


@pytest.mark.parametrize("family", ["bart", "t5"])
@pytest.mark.parametrize("copy", [True, False])
def test_the_loss_is_the_mean_over_requests_with_the_plain_model_weighted(family: str, copy: bool) -> None:
    codes = random_codes(np.random.default_rng(0), 30, SIZES, unique=True)
    model = random_generator(0, codes, SIZES, family, copy=copy).train()
    labels = torch.from_numpy(codes[:4].astype(np.int64))
    out = model(**batch(random_batch(np.random.default_rng(1), codes, 4)), labels=labels)
    expected = -out.log_prob.sum(-1).mean()
    if copy:
        expected = expected - model.config.plain_loss * out.plain_log_prob.sum(-1).mean()
    else:
        assert out.plain_log_prob is None
    torch.testing.assert_close(out.loss, expected)
    assert out.log_prob.shape == labels.shape and (out.log_prob <= 0).all()
    held_out = model.eval()(**batch(random_batch(np.random.default_rng(1), codes, 4)), labels=labels)
    torch.testing.assert_close(held_out.loss, -held_out.log_prob.sum(-1).mean())


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_every_part_learns_and_no_gradient_is_lost(family: str) -> None:
    """Also where no history slot continues the prefix, and for a request without any history."""
    rng = np.random.default_rng(2)
    codes = random_codes(rng, 30, SIZES, unique=True)
    model = random_generator(2, codes, SIZES, family).train()
    requests = random_batch(rng, codes, 6)
    requests[0]["slot_codes"].fill_(-1)
    labels = torch.from_numpy(codes[:6].astype(np.int64))
    model(**batch(requests), labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    for name, part in model.named_children():
        assert any(one.grad is not None and one.grad.abs().sum() > 0 for one in part.parameters()), name


def test_a_history_of_impossible_weight_keeps_everything_finite() -> None:
    """A copy score far below the rest vanishes in float32; its logarithm and gradient must not."""
    codes = random_codes(np.random.default_rng(3), 20, SIZES, unique=True)
    model = random_generator(3, codes, SIZES)
    for scale in (-1e4, 1e4):
        model.zero_grad()
        torch.nn.init.constant_(model.copies.features[-1].bias, scale)
        inputs = batch(random_batch(np.random.default_rng(3), codes, 5))
        out = model(**inputs, labels=torch.from_numpy(codes[:5].astype(np.int64)))
        out.loss.backward()
        assert out.loss.isfinite()
        assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


def test_popularity_counts_as_of_the_request(tmp_path: Path) -> None:
    codes = random_codes(np.random.default_rng(4), 20, SIZES, unique=True)
    request = random_batch(np.random.default_rng(4), codes, 1)[0]
    scores = {}
    for prior in (True, False):
        model = random_generator(4, codes, SIZES, prior=prior)
        scores[prior] = [
            code_log_prob(model, request | {"snapshot": torch.tensor([snapshot])}, codes) for snapshot in (0, 1)
        ]
    assert not torch.allclose(*scores[True])
    torch.testing.assert_close(*scores[False])


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_saved_model_scores_the_same(tmp_path: Path, family: str) -> None:
    codes = random_codes(np.random.default_rng(5), 30, SIZES, unique=False)
    model = random_generator(5, codes, SIZES, family)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    inputs = batch(random_batch(np.random.default_rng(5), codes))
    expected = code_log_prob(model, inputs, codes)
    for loaded in (Generator.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        again = loaded.bind(model.bound).eval()
        torch.testing.assert_close(code_log_prob(again, inputs, codes), expected, atol=0, rtol=0)


def test_a_semantic_id_that_no_item_has_is_an_error() -> None:
    codes = np.array([[0, 0, 0], [1, 1, 1]], np.int32)
    model = random_generator(6, codes, SIZES)
    inputs = random_batch(np.random.default_rng(6), codes, 1)[0]
    with pytest.raises(KeyError, match="no item has"):
        model(**inputs, labels=torch.tensor([[0, 1, 0]]))
