"""Shares on offer below prefixes, against counting the items below each node."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from catalogues import OFFER_ROWS, random_codes, random_offers

from onesearch.model.offered import offered_below
from onesearch.prefix import PrefixIndex


@pytest.mark.parametrize("unique", [True, False])
def test_shares_are_those_of_the_items_below(unique: bool) -> None:
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 90, (4, 5, 6), unique)
    offers = random_offers(rng, len(codes), 3)
    kept = np.flatnonzero(rng.random(len(codes)) < 0.8)  # the others are known, but not on sale
    whole = PrefixIndex.build(codes[kept])
    index = PrefixIndex(**{**whole.__dict__, "items": torch.from_numpy(kept)[whole.items]})
    flags = np.zeros((OFFER_ROWS, len(codes), 3))
    flags[np.divmod(offers.key, len(codes))] = (offers.kind[:, None] >> np.arange(3)) & 1
    assert flags.any() and not flags[0].any()
    below = index.items.numpy()
    for depth, level in enumerate(offered_below(index, offers), 1):
        edges = index.below[depth].numpy()
        expected = np.stack([flags[:, below[a:b]].mean(1) for a, b in pairwise(edges)], 1)
        found = level.of_all(torch.arange(OFFER_ROWS)).permute(1, 2, 0)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        row, node = (place.flatten() for place in np.indices(expected.shape[:2]))
        some = level.of_nodes(torch.from_numpy(row), torch.from_numpy(node))
        np.testing.assert_array_equal(some, found.flatten(0, 1))


def test_without_offers_all_is_empty() -> None:
    index = PrefixIndex.build(random_codes(np.random.default_rng(0), 20, (4, 5), True))
    assert offered_below(index, random_offers(np.random.default_rng(0), 20, 0)) == ()
