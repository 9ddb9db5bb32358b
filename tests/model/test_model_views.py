"""Views of the user as encoder positions: what fills them, that they learn, and that without them nothing changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from catalogues import CONTENT, FEATURES, PRIORS, TASTE, TEXT, backbone, batch, random_batch, random_codes
from torch import Tensor

from onesearch.model import Catalogue, Generator, GeneratorConfig
from onesearch.model.views import READS, Lrea, Words
from onesearch.prefix import PrefixIndex
from onesearch.search import GeneratorScorer, beam_search

SIZES = (4, 5, 6)
PLACES, KNOWN = 6, 3
SITUATION = ("place_value", "device_value")
ALL = {
    "uid": {"levels": 2},
    "queries": {},
    "long": {"way": "qformer", "tokens": 3, "places": PLACES, "known": KNOWN},
    "profile": {"values": 5},
    "time": {},
    "place": {"values": 4},
    "device": {"values": 9},
}
LREA = ALL | {"long": ALL["long"] | {"way": "lrea"}}
CODES = random_codes(np.random.default_rng(0), 30, SIZES, unique=True)


def generator(views: dict[str, Any] | None, family: str = "bart", seed: int = 0) -> Generator:
    torch.manual_seed(seed)
    config = GeneratorConfig(
        backbone=backbone(family),
        text_vocabulary=TEXT,
        level_sizes=list(SIZES),
        history_features=FEATURES,
        content=CONTENT,
        taste=TASTE,
        priors=PRIORS,
        views=views,
    )
    counts = torch.rand(PRIORS, 3, len(CODES)) * 20
    bits = torch.randint(0, 256, (len(CODES), 2), dtype=torch.uint8)
    vectors = torch.randn(len(CODES), CONTENT + TASTE)
    return Generator(config).eval().bind(Catalogue.build(PrefixIndex.build(CODES), list(counts), vectors, bits))


def some_views(requests: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of all views; the last request has nothing but a moment."""
    random = torch.Generator().manual_seed(seed)
    given = {
        "uid_codes": torch.randint(0, 4, (requests, 2, 2), generator=random),
        "past_query_ids": torch.randint(3, TEXT, (requests, 2, 3), generator=random),
        "past_query_weights": torch.full((requests, 2, 3), 1 / 3),
        "past_query_age": torch.rand(requests, 2, generator=random),
        "long_means": torch.randn(requests, PLACES, KNOWN, generator=random),
        "long_counts": torch.rand(requests, PLACES, generator=random) + 0.1,
        "profile_values": torch.randint(1, 5, (requests, 2), generator=random),
        "time_moment": torch.randint(0, 7, (requests, 2), generator=random),
        "place_value": torch.randint(1, 4, (requests, 1), generator=random),
        "device_value": torch.randint(1, 9, (requests, 1), generator=random),
    }
    given["uid_codes"][-1] = -1
    for name in ("past_query_weights", "past_query_age", "long_means", "long_counts", "profile_values", *SITUATION):
        given[name][-1] = 0
    return given


def log_prob(model: Generator, views: dict[str, Tensor] | None, seed: int = 1) -> Tensor:
    inputs = batch(random_batch(np.random.default_rng(seed), CODES))
    with torch.inference_mode():
        return model(**inputs, views=views, labels=torch.from_numpy(CODES[:3].astype(np.int64))).log_prob


def test_without_views_weights_and_scores_are_those_of_a_model_that_knows_none() -> None:
    plain, seeing = generator(None), generator(ALL)
    weights = seeing.state_dict()
    assert not any(name.startswith("views") for name in plain.state_dict())
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(weights[name], weight, atol=0, rtol=0, msg=name)
    torch.testing.assert_close(log_prob(plain, None), log_prob(plain, some_views()), atol=0, rtol=0)


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_each_view_changes_the_scores_of_whoever_has_it_and_of_nobody_else(name: str, family: str) -> None:
    model = generator({name: ALL[name]}, family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    one, other = some_views(seed=0), some_views(seed=1)
    found, changed = log_prob(model, one), log_prob(model, other)
    for row in range(2):
        assert not torch.allclose(found[row], changed[row], atol=1e-5)
    if name != "time":
        torch.testing.assert_close(found[2], changed[2], atol=0, rtol=0)


@pytest.mark.parametrize("views", [ALL, LREA], ids=["qformer", "lrea"])
def test_every_part_learns_and_no_gradient_is_lost(views: dict[str, Any]) -> None:
    model = generator(views).train()
    inputs = batch(random_batch(np.random.default_rng(1), CODES))
    model(**inputs, views=some_views(), labels=torch.from_numpy(CODES[:3].astype(np.int64))).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all(), name
    for name, parameter in model.views.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("views", [ALL, LREA], ids=["qformer", "lrea"])
def test_a_request_scores_the_same_alone_and_in_a_batch(views: dict[str, Any]) -> None:
    model, given = generator(views), some_views()
    requests = random_batch(np.random.default_rng(1), CODES)
    together = log_prob(model, given)
    for row, request in enumerate(requests):
        alone = {name: tensor[row : row + 1] for name, tensor in given.items()}
        found = model(**request, views=alone, labels=torch.from_numpy(CODES[row : row + 1].astype(np.int64))).log_prob
        torch.testing.assert_close(found[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("views", [ALL, LREA], ids=["qformer", "lrea"])
def test_saved_and_loaded_it_scores_and_searches_the_same(tmp_path: Path, views: dict[str, Any]) -> None:
    model, given = generator(views), some_views()
    model.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path).bind(model.bound).eval()
    assert loaded.config.views == views
    torch.testing.assert_close(log_prob(loaded, given), log_prob(model, given), atol=0, rtol=0)
    inputs = batch(random_batch(np.random.default_rng(1), CODES))
    with torch.inference_mode():
        one, other = (
            beam_search(GeneratorScorer(which, which.read(**inputs, views=given)), 30, 30) for which in (model, loaded)
        )
    torch.testing.assert_close(one.items, other.items)
    assert torch.allclose(one.scores.exp().sum(-1), torch.ones(3), atol=1e-4), "all items together are certain"


def test_views_that_are_not_given_are_named() -> None:
    given = some_views()
    del given["long_counts"], given["time_moment"]
    with pytest.raises(ValueError, match="not given: long_counts, time_moment"):
        log_prob(generator(ALL), given)
    assert {name for names in READS.values() for name in names} == set(some_views())


def test_low_rank_attention_is_attention_without_softmax_over_every_event() -> None:
    """Against the sum over single events, each with its bucket's row of A_k and A_v: the rank bottleneck and all."""
    torch.manual_seed(0)
    part = Lrea(width=4, tokens=2, places=PLACES, known=KNOWN)
    means, counts = torch.randn(1, PLACES, KNOWN), torch.ones(1, PLACES)
    asked = torch.randn(1, 4)
    found = part(Words(torch.nn.Embedding(1, 4), [0], asked), means, counts)
    low_key, low_value = part.low_key.weight.T, part.low_value.weight.T  # (places, r)
    keys, values = means[0], part.value(means[0])
    weight = (part.ask(asked)[0] @ keys.T) @ low_key @ low_value.T  # (places,) of each bucket's events
    expected = part.norm(weight @ values) + part.token.weight[-1] + part.length(counts)[0]
    torch.testing.assert_close(found.states[0, -1], expected)
    torch.testing.assert_close(found.loss, 0.1 * (-weight).clamp(min=0).sum())


def test_the_loss_of_low_rank_attention_counts_in_training_only() -> None:
    model, given = generator(LREA), some_views()
    inputs = batch(random_batch(np.random.default_rng(1), CODES)) | {"labels": torch.from_numpy(CODES[:3]).long()}
    context = model.read(**{name: value for name, value in inputs.items() if name != "labels"}, views=given)
    held_out = model(**inputs, views=given)
    torch.testing.assert_close(held_out.loss, -held_out.log_prob.sum(-1).mean())
    trained = model.train()(**inputs, views=given)
    plain = -trained.log_prob.sum(-1).mean() - model.config.plain_loss * trained.plain_log_prob.sum(-1).mean()
    assert context.loss > 0
    torch.testing.assert_close(trained.loss, plain + context.loss)
