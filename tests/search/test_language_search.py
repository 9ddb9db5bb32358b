"""Beam search with language models against scoring every item with the model's own forward, and against `generate`."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import BEGIN, FAMILIES, level_starts, padded
from reference import EXACT, cases, made

from onesearch.allowed import Allowed
from onesearch.model.language import language_model
from onesearch.search import LanguageScorer, beam_search, codes_of

PER_FAMILY = settings(max_examples=8, deadline=None, derandomize=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_beam_as_wide_as_the_catalogue_is_brute_force(family: str) -> None:
    @PER_FAMILY
    @given(cases((family,)))
    def holds(drawn: dict[str, Any]) -> None:
        case = made(**drawn)
        scores, number = case.log_prob().sum(-1).double(), len(case.codes)
        found = beam_search(case.scorer, number, number, case.allowed)
        assert found.exact.all()
        for request, expected in enumerate(scores.numpy()):
            items = found.items[request][found.items[request] >= 0].tolist()
            assert sorted(items) == case.mask[request].nonzero()[:, 0].tolist(), "every allowed item, none twice"
            assert int(found.counts[request]) == len(items)
            np.testing.assert_allclose(found.scores[request][: len(items)], expected[items], **EXACT)
            assert (np.diff(found.scores[request][: len(items)]) <= 0).all(), "best first"
            assert found.scores[request][len(items) :].isneginf().all()
            np.testing.assert_array_equal(
                codes_of(case.scorer.index, found.nodes[request][: len(items)]), case.codes[items]
            )
            place = {item: place for place, item in enumerate(items)}
            wanted = case.ranked(expected, request)
            for one, other in itertools.pairwise(wanted):
                if (case.codes[one] == case.codes[other]).all():
                    assert place[other] == place[one] + 1, "items of one semantic ID stay together, in their order"

    holds()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 6), st.integers(1, 8), st.booleans())
def test_a_narrow_beam_is_a_plain_beam_search(drawn: dict[str, Any], beams: int, k: int, early_stop: bool) -> None:
    case = made(**drawn)
    levels = case.log_prob().cumsum(-1).double().numpy()
    found = beam_search(case.scorer, beams, k, case.allowed, early_stop)
    for request in range(len(levels)):
        prefixes: set[tuple[int, ...]] = {()}
        for depth in range(1, case.codes.shape[1] + 1):
            score = {
                tuple(case.codes[item, :depth]): levels[request, item, depth - 1]
                for item in range(len(case.codes))
                if tuple(case.codes[item, : depth - 1]) in prefixes and case.mask[request, item]
            }
            prefixes = set(sorted(score, key=lambda prefix: -score[prefix])[: max(beams, k)])
        reached = [i for i in case.ranked(levels[request, :, -1], request) if tuple(case.codes[i]) in prefixes][:k]
        items = found.items[request][found.items[request] >= 0].tolist()
        assert items == reached
        np.testing.assert_allclose(found.scores[request][: len(items)], levels[request, reached, -1], **EXACT)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 4), st.integers(1, 4))
def test_a_search_that_says_it_is_exact_is(drawn: dict[str, Any], beams: int, k: int) -> None:
    case = made(**drawn)
    scores = case.log_prob().sum(-1).masked_fill(~case.mask, -torch.inf)
    found = beam_search(case.scorer, beams, k, case.allowed)
    best = scores.sort(1, descending=True).values[:, :k]
    for request in found.exact.nonzero()[:, 0].tolist():
        torch.testing.assert_close(found.scores[request, : best.shape[1]], best[request], **EXACT)


def test_a_beam_that_loses_the_best_item_does_not_say_it_is_exact() -> None:
    """Over many catalogues both occur: beams of one that are exact and know it, and beams that miss the best item."""
    exact = missed = 0
    for seed in range(40):
        case = made(seed, 30, (4, 5, 6), "llama")
        scores = case.log_prob().sum(-1)
        found = beam_search(case.scorer, 1, 1)
        misses = found.scores[:, 0] < scores.amax(1) - 1e-3
        assert not (misses & found.exact).any()
        exact, missed = exact + int(found.exact.sum()), missed + int(misses.sum())
    assert exact > 5 and missed > 5


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 40))
def test_all_probability_is_the_catalogues_or_known_not_to_be(drawn: dict[str, Any], beams: int) -> None:
    case = made(**drawn)
    codes, first = np.unique(case.codes, axis=0, return_index=True)
    mass = case.log_prob().sum(-1)[:, first].exp().sum(1)
    if drawn["normalise"] == "children":
        torch.testing.assert_close(mass, torch.ones(len(mass)), atol=1e-4, rtol=0)
    least, most = beam_search(case.scorer, beams, 1).mass.T
    assert (least <= mass + 1e-4).all() and (mass <= most + 1e-4).all()
    least, most = beam_search(case.scorer, len(codes), 1).mass.T
    torch.testing.assert_close(least, mass, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(most, mass, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_request_alone_finds_what_it_finds_in_a_batch(family: str, side: str) -> None:
    case = made(7, 40, (4, 5, 6), family, side=side, filtered=True)
    found = beam_search(case.scorer, 5, 5, case.allowed)
    for request in range(len(case.prompts)):
        alone = made(7, 40, (4, 5, 6), family)
        scorer = LanguageScorer(case.language, case.language.read(*padded([case.prompts[request]])), alone.scorer.index)
        one = Allowed.of(scorer.index, case.mask[request : request + 1])
        by_itself = beam_search(scorer, 5, 5, one)
        assert by_itself.items[0].tolist() == found.items[request].tolist()
        torch.testing.assert_close(by_itself.scores[0], found.scores[request], **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 4])
def test_generate_with_a_trie_finds_the_same(family: str, beams: int) -> None:
    """`transformers` renormalises over what the trie allows, which is normalising over the children of a prefix."""
    sizes = (4, 5, 6)
    case = made(11, 40, sizes, family, unique=True)
    starts, own = level_starts(sizes), []
    children: dict[tuple[int, ...], list[int]] = {}
    for row in case.codes + np.array(starts):
        for depth in range(len(sizes)):
            children.setdefault(tuple(row[:depth].tolist()), []).append(int(row[depth]))
    for prompt in case.prompts:
        begin = 1 if case.model.config.is_encoder_decoder else len(prompt)
        options: dict[str, Any] = {"decoder_start_token_id": BEGIN} if case.model.config.is_encoder_decoder else {}
        out = case.model.generate(
            torch.from_numpy(prompt)[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=len(sizes),
            do_sample=False,
            length_penalty=0.0,
            renormalize_logits=True,
            prefix_allowed_tokens_fn=lambda _, row, begin=begin: children[tuple(row[begin:].tolist())],
            **options,
        )
        own.append(out[:, -len(sizes) :] - torch.tensor(starts))
    found = beam_search(case.scorer, beams, beams)
    torch.testing.assert_close(codes_of(case.scorer.index, found.nodes), torch.stack(own))


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_bfloat16_is_near_float32(family: str) -> None:
    case = made(3, 40, (4, 5, 6), family)
    half = language_model(copy.deepcopy(case.model).to(torch.bfloat16), level_starts((4, 5, 6)), (4, 5, 6))
    scorer = LanguageScorer(half, half.read(*padded(case.prompts)), case.scorer.index)
    found, full = beam_search(scorer, 40, 40), beam_search(case.scorer, 40, 40)
    assert found.scores.dtype == torch.float32
    by_item = [one.items.argsort(1) for one in (found, full)]
    difference = found.scores.gather(1, by_item[0]) - full.scores.gather(1, by_item[1])
    assert difference.abs().max() > 0 and difference.abs().median() < 0.15
