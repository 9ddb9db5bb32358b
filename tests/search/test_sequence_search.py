"""Answers from histories: the beam, the interest head and both together, against scoring every item."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from histories import Case, log_prob, made
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from onesearch.allowed import Allowed
from onesearch.search import beam_search
from onesearch.search.fusion import candidates, fused
from onesearch.search.interest import InterestIndex
from onesearch.search.scores import item_log_prob

EXACT = {"atol": 1e-3, "rtol": 1e-4}


def interest_index(case: Case, share: float = 0.5) -> InterestIndex:
    vectors = F.normalize(case.scorer.keys.items, dim=1)
    return InterestIndex(vectors, torch.arange(len(vectors)), case.model.scale, share)


def logits(case: Case) -> torch.Tensor:
    """(B, N) of the interest head."""
    wanted = case.scorer.interest
    found = wanted.vectors @ F.normalize(case.scorer.keys.items, dim=1).T * case.model.scale
    for request, seen in enumerate(case.scorer.seen.tolist()):
        found[request, [item for item in seen if item >= 0]] += wanted.bonus
    return found


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    items=st.integers(1, 25),
    normalise=st.sampled_from(["children", "level"]),
    family=st.sampled_from(["gpt2", "llama"]),
    filtered=st.booleans(),
)
def test_a_wide_beam_is_scoring_every_item(seed: int, items: int, normalise: Any, family: str, filtered: bool) -> None:
    case = made(seed, items, family, normalise)
    expected = log_prob(case)
    mask = torch.rand(3, len(case.codes), generator=torch.Generator().manual_seed(seed)) < (0.5 if filtered else 2)
    allowed = Allowed.of(case.scorer.index, mask) if filtered else None
    found = beam_search(case.scorer, 60, 7, allowed)
    for request in range(3):
        inside = expected[request][mask[request]]
        best = inside.sort(descending=True).values[:7]
        torch.testing.assert_close(found.scores[request, : len(best)], best, **EXACT)
        kept = found.items[request, : len(best)]
        assert mask[request, kept].all() and (found.items[request, len(best) :] == -1).all()
        torch.testing.assert_close(expected[request, kept], best, **EXACT)
    assert case.scorer.closed == (normalise == "children")


@pytest.mark.parametrize("normalise", ["children", "level"])
def test_given_items_have_the_scores_that_a_search_gives_them(normalise: str) -> None:
    case = made(3, normalise=normalise)
    items = torch.tensor([[4, -1, 0], [9, 9, 2], [-1, 1, 7]])
    found = item_log_prob(case.scorer, items)
    expected = log_prob(case).gather(1, items.clamp(min=0)).masked_fill(items < 0, -torch.inf)
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_nearest_items_are_those_with_the_largest_products() -> None:
    case = made(4)
    found, score = interest_index(case).search(case.scorer.interest, 5)
    best = logits(case).topk(5)
    assert found.tolist() == best.indices.tolist()
    torch.testing.assert_close(score, best.values, **EXACT)


@pytest.mark.parametrize("bonus", [-50.0, 0.0, 50.0])
def test_what_was_seen_comes_last_or_first_as_was_learnt(bonus: float) -> None:
    case = made(4)
    wanted = replace(case.scorer.interest, bonus=bonus)
    found, score = interest_index(case).search(wanted, 5)
    seen = {0, 1, 2}
    plain, _ = interest_index(case).search(replace(wanted, seen=None), len(case.codes))
    order = plain[0].tolist()
    if bonus:
        first, last = ([one for one in order if (one in seen) == (bonus > 0)] for bonus in (bonus, -bonus))
        order = first + last
    assert found[0].tolist() == order[:5]
    assert (score.diff(dim=1) <= 0).all()


def test_a_filter_costs_no_result() -> None:
    case = made(5)
    masks = torch.zeros(2, len(case.codes), dtype=torch.bool)
    masks[0, [3, 11]], masks[1, ::2] = True, True
    row = torch.tensor([1, 0, 1])
    found, score = interest_index(case).search(case.scorer.interest, 4, masks, row)
    expected = logits(case).masked_fill(~masks[row], -torch.inf).topk(4)
    assert found[[0, 2]].tolist() == expected.indices[[0, 2]].tolist()
    assert set(found[1].tolist()) == {3, 11, -1} and score[1, 2:].isneginf().all()


def test_both_is_the_union_with_both_scores() -> None:
    case, share = made(6, 40), 0.3
    index = interest_index(case, share)
    items, log_p, logit = candidates(case.scorer, index, 6)
    beam, near = beam_search(case.scorer, 6, 6).items, index.search(case.scorer.interest, 6)[0]
    exact, nearness = log_prob(case), logits(case)
    for request in range(3):
        union = set(beam[request].tolist()) | set(near[request].tolist())
        kept = items[request][items[request] >= 0]
        assert sorted(kept.tolist()) == sorted(union), "each once"
        torch.testing.assert_close(log_p[request][items[request] >= 0], exact[request, kept], **EXACT)
        torch.testing.assert_close(logit[request][items[request] >= 0], nearness[request, kept], **EXACT)
    found, score = fused(case.scorer, index, 6, 4)
    whole = (1 - share) * exact + share * nearness
    for request in range(3):
        union = items[request][items[request] >= 0]
        best = whole[request, union].sort(descending=True)
        torch.testing.assert_close(score[request], best.values[:4], **EXACT)
        torch.testing.assert_close(whole[request, found[request]], best.values[:4], **EXACT)


@pytest.mark.parametrize(("share", "alone"), [(0.0, "generate"), (1.0, "interest")])
def test_a_share_of_nought_or_one_is_one_of_the_two(share: float, alone: str) -> None:
    case = made(7, unique=True)
    index = interest_index(case, share)
    found, _ = fused(case.scorer, index, 60, 5)
    one = beam_search(case.scorer, 60, 5).items if alone == "generate" else index.search(case.scorer.interest, 5)[0]
    assert found.tolist() == one.tolist()


def test_both_with_a_filter_gives_what_is_allowed_and_no_more() -> None:
    case = made(8)
    mask = torch.zeros(1, len(case.codes), dtype=torch.bool)
    mask[0, [2, 5, 9]] = True
    allowed = Allowed.of(case.scorer.index, mask, torch.zeros(3, dtype=torch.int64))
    found, score = fused(case.scorer, interest_index(case), 5, 5, allowed, mask)
    assert all(set(row) == {2, 5, 9, -1} for row in found.tolist())
    assert score[:, 3:].isneginf().all()
