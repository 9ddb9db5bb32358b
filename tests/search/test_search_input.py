"""What cannot be searched is told, and searches do not wait for the device."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from catalogues import batch, random_batch, random_codes, random_generator
from language_models import FAMILIES, level_starts, padded, random_model
from reference import made
from torch.utils._python_dispatch import TorchDispatchMode

from onesearch.allowed import Allowed
from onesearch.errors import UserError
from onesearch.model import generator
from onesearch.model.language import language_model
from onesearch.prefix import PrefixIndex
from onesearch.search import (
    GeneratorScorer,
    LanguageScorer,
    beam_search,
    diverse_beam_search,
    sample,
    sample_without_replacement,
)
from onesearch.search.beam import search

SIZES = (4, 5, 6)


def test_a_filter_leaves_what_it_leaves_whatever_the_beam() -> None:
    case = made(2, 40, SIZES, "llama")
    mask = torch.zeros(3, 40, dtype=torch.bool)
    mask[0, [3, 17, 29]] = mask[1, 5] = True
    allowed = Allowed.of(case.scorer.index, mask)
    scores = case.log_prob().sum(-1)
    for beams in (1, 2, 100):
        found = beam_search(case.scorer, beams, 4, allowed)
        assert found.counts.tolist() == [3, 1, 0], "a filter that matches nothing gives nothing"
        assert sorted(found.items[0, :3].tolist()) == [3, 17, 29] and found.items[1, 0] == 5
        torch.testing.assert_close(found.scores[0, :3], scores[0, found.items[0, :3]], atol=3e-4, rtol=1e-4)
        assert (found.items[2] == -1).all() and found.scores[2].isneginf().all()
        assert found.exact.all()
    for found in (
        diverse_beam_search(case.scorer, 2, 2, 4, 1, 4, allowed),
        sample(case.scorer, 4, allowed=allowed),
        sample_without_replacement(case.scorer, 4, allowed=allowed),
    ):
        assert (found.items[2] == -1).all() and (found.counts[:2] > 0).all()


def test_a_beam_larger_than_the_catalogue() -> None:
    case = made(2, 3, SIZES, "bart")
    found = beam_search(case.scorer, 10_000, 5)
    assert found.counts.tolist() == [3, 3, 3] and found.items.shape == (3, 5)


@pytest.mark.parametrize(("beams", "k"), [(0, 1), (1, 0), (-1, 5)])
def test_no_beam(beams: int, k: int) -> None:
    with pytest.raises(ValueError, match="beams and k must be at least 1"):
        beam_search(made(2, 3, SIZES, "llama").scorer, beams, k)


def test_a_filter_of_something_else() -> None:
    case, other = made(2, 40, SIZES, "llama"), made(2, 30, SIZES, "llama")
    with pytest.raises(ValueError, match="for 30 items, the catalogue has 40"):
        beam_search(case.scorer, 3, 3, Allowed.of(other.scorer.index, torch.ones(1, 30, dtype=torch.bool)))
    with pytest.raises(ValueError, match="for 2 requests, there are 3"):
        beam_search(case.scorer, 3, 3, Allowed.of(case.scorer.index, torch.ones(2, 40, dtype=torch.bool)))


@pytest.mark.parametrize("strategy", [beam_search, sample, sample_without_replacement])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_numbers_name_the_request(strategy: Any, value: float) -> None:
    case = made(2, 40, SIZES, "llama")
    with torch.inference_mode():
        case.scorer.prompt.hidden[1] = value
    with pytest.raises(FloatingPointError, match="request 1 are not numbers"):
        strategy(case.scorer, 3, 3) if strategy is beam_search else strategy(case.scorer, 3)


def test_codes_and_levels_that_the_model_does_not_have() -> None:
    case = made(2, 40, SIZES, "llama")
    for codes, said in (([[0, 1]], "has 2 levels, the model 3"), ([[0, 5, 0]], "level 1: the model has 5 codes: 5")):
        with pytest.raises(UserError, match=said):
            LanguageScorer(case.language, case.scorer.prompt, PrefixIndex.build(np.array(codes)))
    model = random_generator(0, np.array([[0, 1, 2]], np.int32), SIZES)
    context = model.read(**batch(random_batch(np.random.default_rng(0), np.array([[0, 1, 2]], np.int32))))
    model.config.level_sizes = [4, 5]
    with pytest.raises(ValueError, match="the catalogue has 3 levels, the model 2"):
        GeneratorScorer(model, context)


WAITS = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "_unique2"}


class _NoWaiting(TorchDispatchMode):
    """Fails where a value is read from the device, or where a shape depends on one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name == "index" else ()
        if name in WAITS or any(one is not None and one.dtype == torch.bool for one in places):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_of_a_search_waits_for_the_device(family: str) -> None:
    case = made(2, 40, SIZES, family, normalise="level", filtered=True)
    with torch.inference_mode(), _NoWaiting():
        search(case.scorer, 5, 3, case.allowed)
    with pytest.raises(AssertionError, match="waits for the device"), _NoWaiting():
        beam_search(case.scorer, 5, 3)  # the check of the result does, once


@pytest.mark.parametrize("family", [one for one in FAMILIES if one != "gpt2"])  # it looks for padding while reading
def test_every_tensor_of_a_search_is_on_the_models_device(family: str) -> None:
    """On the device "meta", which knows shapes only and refuses tensors of another device."""
    rng = np.random.default_rng(0)
    index = PrefixIndex.build(random_codes(rng, 40, SIZES, False))
    # GPT-OSS multiplies its experts in bfloat16 only, except on a CPU.
    moved = copy.deepcopy(random_model(family, SIZES)).to("meta", torch.bfloat16)
    model = language_model(moved, level_starts(SIZES), SIZES)
    tokens, mask = padded([np.array([3, 4, 5]), np.array([6])])
    scorer = LanguageScorer(model, model.read(tokens.to("meta"), mask.to("meta")), index.to("meta"))
    whole = Allowed.of(index, torch.ones(2, 40, dtype=torch.bool))
    allowed = Allowed(scorer.index, whole.total.to("meta"), whole.row.to("meta"))
    with torch.inference_mode():
        found = search(scorer, 5, 3, allowed)
    assert found.items.device.type == "meta" and found.items.shape == found.scores.shape == (2, 3)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_generator_reads_and_is_searched_on_one_device(family: str) -> None:
    """Likewise, with the ways of a device that must not be waited for: "meta" has no values to look at."""
    codes = random_codes(np.random.default_rng(0), 40, SIZES, False)
    model = random_generator(0, codes, SIZES, family, offers=2)
    inputs, catalogue = batch(random_batch(np.random.default_rng(0), codes)), model.bound
    whole = Allowed.of(catalogue.index, torch.ones(3, 40, dtype=torch.bool))
    model.to("meta").bind(catalogue)
    scorer = GeneratorScorer(model, model.read(**{name: one.to("meta") for name, one in inputs.items()}))
    allowed = Allowed(scorer.index, whole.total.to("meta"), whole.row.to("meta"))
    with torch.inference_mode():
        found = search(scorer, 5, 3, allowed)
    assert found.items.device.type == "meta" and found.items.shape == found.scores.shape == (3, 3)
    with pytest.raises(NotImplementedError):
        found.items.nonzero()


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_a_generator_scores_every_place_as_it_scores_the_filled_ones(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graphics processor does, here a few places at a time."""
    codes = random_codes(np.random.default_rng(1), 40, SIZES, False)
    model = random_generator(1, codes, SIZES, family)
    inputs = batch(random_batch(np.random.default_rng(1), codes))
    expected = beam_search(GeneratorScorer(model, model.read(**inputs)), 8, 40)
    monkeypatch.setattr(generator, "COUNTED", ())
    monkeypatch.setattr(generator, "PLACES", 7)
    scorer = GeneratorScorer(model, model.read(**inputs))
    with torch.inference_mode(), _NoWaiting():
        found = search(scorer, 40, 40, None)
    torch.testing.assert_close(found.items, expected.items)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-5)
