"""The diverse beam against taking items from the whole ranking while their prefix has room."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import EXACT, cases, made

from onesearch.search import diverse_beam_search


@settings(max_examples=30, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_as_wide_as_the_catalogue_it_takes_the_best_of_each_prefix(
    drawn: dict[str, Any], k: int, most: int, depth: int
) -> None:
    case = made(**drawn)
    depth = min(depth, case.codes.shape[1])
    found = diverse_beam_search(case.scorer, len(case.codes), len(case.codes), k, depth, most, case.allowed)
    assert found.items.shape == (len(case.prompts), k)
    for request, scores in enumerate(case.log_prob().sum(-1).double().numpy()):
        taken: Counter[tuple[int, ...]] = Counter()
        expected = []
        for item in case.ranked(scores, request):
            prefix = tuple(case.codes[item, :depth].tolist())
            if taken[prefix] < most and len(expected) < k:
                expected.append(item)
                taken[prefix] += 1
        items = found.items[request][found.items[request] >= 0].tolist()
        assert items == expected
        np.testing.assert_allclose(found.scores[request][: len(items)], scores[expected], **EXACT)
        assert found.scores[request][len(items) :].isneginf().all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 10), st.integers(1, 3), st.integers(1, 3))
def test_however_narrow_no_prefix_has_more_than_its_share(
    drawn: dict[str, Any], prefixes: int, beams: int, k: int, depth: int, most: int
) -> None:
    case = made(**drawn)
    depth = min(depth, case.codes.shape[1])
    found = diverse_beam_search(case.scorer, prefixes, beams, k, depth, most, case.allowed)
    log_prob = case.log_prob().sum(-1).numpy()
    for request in range(len(case.prompts)):
        items = found.items[request][found.items[request] >= 0].tolist()
        assert len(set(items)) == len(items) and case.mask[request, items].all()
        shared = Counter(tuple(case.codes[item, :depth].tolist()) for item in items)
        assert max(shared.values(), default=0) <= most
        np.testing.assert_allclose(found.log_prob[request][: len(items)], log_prob[request, items], **EXACT)


@pytest.mark.parametrize(("depth", "most"), [(0, 1), (4, 1), (1, 0)])
def test_numbers_that_make_no_sense(depth: int, most: int) -> None:
    case = made(5, 25, (4, 5, 6), "llama")
    with pytest.raises(ValueError, match="depth"):
        diverse_beam_search(case.scorer, 3, 3, 3, depth, most)
