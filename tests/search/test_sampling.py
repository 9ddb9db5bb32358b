"""Draws against the probabilities worked out by scoring every item."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import padded
from reference import EXACT, Case, cases, made
from scipy.stats import binomtest
from torch import Tensor

from onesearch.search import LanguageScorer, sample, sample_without_replacement

DRAWS = 20_000


def proposal(case: Case, temperature: float) -> Tensor:
    """(B, N) log-probability of each item's semantic ID where each code is drawn among the children that hold an
    allowed item, in proportion to its probability to the power of 1 / temperature."""
    levels = case.log_prob().double()
    total = torch.zeros(levels.shape[:2], dtype=torch.float64)
    for request in range(len(levels)):
        for item in range(len(case.codes)):
            if not case.mask[request, item]:
                total[request, item] = -torch.inf
                continue
            for level in range(case.codes.shape[1]):
                siblings = {
                    int(case.codes[other, level]): float(levels[request, other, level])
                    for other in range(len(case.codes))
                    if (case.codes[other, :level] == case.codes[item, :level]).all() and case.mask[request, other]
                }
                weight = {code: math.exp(value / temperature) for code, value in siblings.items()}
                total[request, item] += math.log(weight[int(case.codes[item, level])] / sum(weight.values()))
    return total


@settings(max_examples=15, deadline=None, derandomize=True)
@given(cases(), st.sampled_from([0.7, 1.0, 2.0]), st.booleans())
def test_the_reported_probabilities_are_those_of_the_items(
    drawn: dict[str, Any], temperature: float, replacement: bool
) -> None:
    case = made(**drawn)
    draw = sample if replacement else sample_without_replacement
    found = draw(case.scorer, 6, temperature, case.allowed, torch.Generator().manual_seed(0))
    log_prob, drawn_with = case.log_prob().sum(-1), proposal(case, temperature).float()
    for request in range(len(case.prompts)):
        items = found.items[request][found.items[request] >= 0]
        assert case.mask[request, items].all()
        torch.testing.assert_close(found.log_prob[request, : len(items)], log_prob[request, items], **EXACT)
        torch.testing.assert_close(found.proposal[request, : len(items)], drawn_with[request, items], **EXACT)
        distinct = len(np.unique(case.codes[case.mask[request].numpy()], axis=0))
        if replacement:
            assert len(items) == (6 if distinct else 0)
        else:
            assert len(items) == min(6, distinct), "as many as there are"
            assert len(np.unique(case.codes[items.tolist()], axis=0)) == len(items), "none twice"
        assert (found.items[request, len(items) :] == -1).all()
        assert found.log_prob[request, len(items) :].isneginf().all()


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(("temperature", "filtered"), [(1.0, False), (1.0, True), (0.5, False), (2.0, True)])
def test_frequencies_are_the_probabilities(family: str, keyed: bool, temperature: float, filtered: bool) -> None:
    case = made(5, 25, (4, 5, 6), family, filtered=filtered)
    random = torch.arange(len(case.prompts)) if keyed else torch.Generator().manual_seed(1)
    found = sample(case.scorer, DRAWS, temperature, case.allowed, random)
    expected = proposal(case, temperature).exp()
    if temperature == 1 and not filtered:
        torch.testing.assert_close(expected.float(), case.log_prob().sum(-1).exp(), atol=1e-5, rtol=1e-3)
    for request in range(len(case.prompts)):
        same = (torch.from_numpy(case.codes)[:, None] == torch.from_numpy(case.codes)).all(-1) & case.mask[request]
        wanted = (expected[request] / same.sum(1)).where(case.mask[request], 0.0)  # as likely as the others of its ID
        counted = torch.bincount(found.items[request].clamp(min=0), minlength=len(case.codes))
        for count, chance in zip(counted.tolist(), wanted.tolist(), strict=True):
            assert chance > 0 or count == 0
            assert chance in (0, 1) or binomtest(count, DRAWS, chance).pvalue > 1e-6


@pytest.mark.parametrize("keyed", [False, True])
def test_without_replacement_every_order_is_as_likely_as_drawing_one_after_the_other(keyed: bool) -> None:
    """P(first i, then j, then k) = p_i x p_j / (1 - p_i) x p_k / (1 - p_i - p_j), for each of 5 x 4 x 3 orders."""
    case = made(1, 5, (2, 3), "llama", normalise="children", unique=True)
    chance = case.log_prob().sum(-1).exp().double()[0]
    trials, counts = 3000, dict.fromkeys(itertools.permutations(range(5), 3), 0)
    generator = torch.Generator().manual_seed(2)
    for trial in range(trials):
        random = torch.arange(trial, trial + len(case.prompts) * trials, trials) if keyed else generator
        counts[tuple(sample_without_replacement(case.scorer, 3, random=random).items[0].tolist())] += 1
    for order, counted in counts.items():
        left, wanted = 1.0, 1.0
        for item in order:
            wanted, left = wanted * float(chance[item]) / left, left - float(chance[item])
        assert abs(counted - trials * wanted) <= 5 * math.sqrt(trials * wanted * (1 - wanted)) + 1


def test_the_same_seed_draws_the_same() -> None:
    case = made(5, 25, (4, 5, 6), "bart")
    for draw in (sample, sample_without_replacement):
        one, same = (draw(case.scorer, 8, random=torch.Generator().manual_seed(3)) for _ in range(2))
        other = draw(case.scorer, 8, random=torch.Generator().manual_seed(4))
        assert torch.equal(one.items, same.items) and torch.equal(one.scores, same.scores)
        assert not torch.equal(one.items, other.items)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("draw", [sample, sample_without_replacement])
def test_a_temperature_that_is_none(draw: Any, temperature: float) -> None:
    case = made(5, 25, (4, 5, 6), "llama")
    with pytest.raises(ValueError, match="temperature"):
        draw(case.scorer, 3, temperature)


@pytest.mark.parametrize("draw", [sample, sample_without_replacement])
def test_with_keys_the_draws_of_a_request_do_not_depend_on_the_batch(draw: Any) -> None:
    case = made(5, 40, (4, 5, 6), "llama")
    keys = torch.tensor([5, 6, 7])
    whole = draw(case.scorer, 8, random=keys)
    for row in range(len(keys)):
        read = case.language.read(*padded(case.prompts[row : row + 1], "left"))
        alone = draw(LanguageScorer(case.language, read, case.scorer.index), 8, random=keys[row : row + 1])
        assert torch.equal(alone.items[0], whole.items[row])
    assert not torch.equal(draw(case.scorer, 8, random=keys + 100).items, whole.items)
