"""Log-probabilities of given items against those of scoring every item."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from reference import EXACT, cases, made

from onesearch.search.scores import item_log_prob


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases())
def test_given_items_have_the_probabilities_of_their_semantic_ids(drawn: dict[str, Any]) -> None:
    case = made(**drawn)
    number, batch = len(case.codes), len(case.prompts)
    random = torch.Generator().manual_seed(drawn["seed"])
    items = torch.randint(-1, number, (batch, 9), generator=random)  # some twice, some empty
    found, expected = item_log_prob(case.scorer, items), case.log_prob().sum(-1)
    for request in range(batch):
        there = items[request] >= 0
        assert found[request, ~there].isneginf().all()
        torch.testing.assert_close(found[request, there], expected[request, items[request, there]].float(), **EXACT)
