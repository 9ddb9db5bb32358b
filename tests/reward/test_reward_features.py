"""What the reward model reads: nothing of the future, and what the log says of the past."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from eval.baselines.features import Features as CascadeFeatures
from onesearch.context.batch import ContextBuilder
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.corpus.offers import Offers, offer_kinds
from onesearch.corpus.schema import OFFERS
from onesearch.embed.static import StaticEncoder
from onesearch.reward.features import CROSS, RewardFeatures

NOW = 1_700_000_000 + 120 * 86_400


def built(corpus: Corpus, encoder: StaticEncoder) -> RewardFeatures:
    """What is read, with tastes from the first weeks."""
    codes = np.column_stack([np.arange(len(corpus.items)) % 6, np.arange(len(corpus.items)) // 6])
    before = np.flatnonzero(corpus.time < NOW - 60 * 86_400)
    return RewardFeatures.of(ContextBuilder.fit(corpus, make_split(corpus), before, encoder, codes, 6, 0))


@pytest.fixture(scope="module")
def features(shop: Corpus, word_encoder: StaticEncoder) -> RewardFeatures:
    return built(shop, word_encoder)


def test_what_was_bought_before_is_known_and_what_is_bought_now_is_not(features: RewardFeatures, shop: Corpus) -> None:
    event = int(shop.offsets[3] + 30)
    requests = Requests.of(shop, np.array([event]))
    items = np.arange(len(shop.items))[None]
    cross = features.inputs(requests, items)["cross"].numpy()[0]
    past = shop.item[shop.offsets[3] : shop.history_end[event]]
    assert set(np.flatnonzero(cross[:, CROSS.index("bought")])) == set(past.tolist())
    count = np.bincount(past, minlength=len(shop.items))
    known = count > 0
    np.testing.assert_allclose(cross[known, CROSS.index("log_count")], np.log(count[known]), rtol=1e-5)
    assert (cross[~known, CROSS.index("log_count")] == 0).all()


def test_nothing_that_happens_later_changes_a_feature(
    features: RewardFeatures, shop: Corpus, word_encoder: StaticEncoder
) -> None:
    later = shop.time >= NOW
    others = np.where(later, (shop.item + 7) % len(shop.items), shop.item).astype(shop.item.dtype)
    events = np.flatnonzero(~later & (shop.time > NOW - 40 * 86_400))[:50]
    items = np.tile(np.arange(12), (len(events), 1))
    requests = Requests.of(shop, events)
    first = features.inputs(requests, items)
    second = built(replace(shop, item=others), word_encoder).inputs(requests, items)
    assert later.sum() > 300 and first["cross"].abs().sum() > 0
    for name in ("cross", "slot_items", "slot_features", "query_vector"):
        np.testing.assert_allclose(first[name].numpy(), second[name].numpy(), atol=1e-5)


def test_empty_places_are_zero_and_change_nothing(features: RewardFeatures, shop: Corpus) -> None:
    requests = Requests.of(shop, np.array([50, 60]))
    items = np.array([[3, -1, 5], [-1, -1, 2]])
    cross = features.inputs(requests, items)["cross"].numpy()
    assert (cross[items < 0] == 0).all()
    alone = features.inputs(requests, items[:, 2:])["cross"].numpy()
    np.testing.assert_allclose(cross[:, 2:], alone, rtol=1e-6)


def test_what_is_on_offer_is_told_of_history_slots_candidates_and_the_cascades(
    shop: Corpus, word_encoder: StaticEncoder
) -> None:
    ids, first = shop.items["item_id"].to_list(), int(shop.time.min())
    rows = [{"item_id": one, "kind": "display", "start": first, "end": NOW * 2, "place": None} for one in ids[::3]]
    rows += [{"item_id": one, "kind": "mailer", "start": 0, "end": first, "place": None} for one in ids]  # it is over
    corpus = replace(shop, offers=pl.LazyFrame(rows, schema=OFFERS))
    features = built(corpus, word_encoder)
    requests = Requests.of(corpus, np.arange(40, 60))
    items = np.tile(np.arange(-1, len(ids)), (len(requests), 1))
    expected = (items >= 0) & (items % 3 == 0)
    given = features.inputs(requests, items)
    assert given["cross"].shape[-1] == features.crossed == len(CROSS) + 2
    np.testing.assert_array_equal(given["cross"][..., len(CROSS)], expected)
    assert not given["cross"][..., len(CROSS) + 1].any()
    slot = given["slot_items"].numpy()
    np.testing.assert_array_equal(given["slot_features"][..., -2], (slot >= 0) & (slot % 3 == 0))
    offered = CascadeFeatures.offered(Offers.of(corpus, offer_kinds(corpus)), requests, items)
    np.testing.assert_array_equal(offered["offered_display"], expected)
    assert not offered["offered_mailer"].any()
