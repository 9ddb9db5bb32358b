"""From requests to tensors: the same after saving, the same alone and in a batch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from catalogues import random_codes

from onesearch.context.batch import QUERY_TOKENS, ContextBuilder
from onesearch.corpus import TEST, TRAIN, Corpus, Requests, make_split, sample_requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import late
from onesearch.embed.static import StaticEncoder
from onesearch.prefix import PrefixIndex
from training.sft import periods

SLOTS = 6


@pytest.fixture(scope="module")
def builder(shop: Corpus, word_encoder: StaticEncoder) -> ContextBuilder:
    codes = random_codes(np.random.default_rng(0), len(shop.items), (8, 8, 8), unique=True)
    split = make_split(shop)
    before = np.flatnonzero((split == TRAIN) & ~late(shop, split, 0.5))
    return ContextBuilder.fit(shop, split, before, word_encoder, codes, SLOTS, seed=0)


def some(shop: Corpus, size: int = 30) -> Requests:
    """Early and late requests: some without a history, some with a long one."""
    split = make_split(shop)
    first = np.flatnonzero(shop.history_end == shop.offsets[shop.user])[:3]
    train, test = (sample_requests(shop, split, part, size, seed=1).event for part in (TRAIN, TEST))
    return Requests.of(shop, np.concatenate([first, train, test]).astype(np.int64))


def test_saved_it_gives_the_same_inputs(
    shop: Corpus, builder: ContextBuilder, word_encoder: StaticEncoder, tmp_path: Path
) -> None:
    builder.save(tmp_path)
    split = make_split(shop)
    loaded = ContextBuilder.load(shop, split, word_encoder, builder.codes, tmp_path)
    trained = builder.knowing(np.flatnonzero(split == TRAIN))
    expected, again = trained.inputs(some(shop))[0], loaded.inputs(some(shop))[0]
    np.testing.assert_array_equal(trained.item_vectors, loaded.item_vectors)
    assert expected.keys() == again.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(again[name], tensor, atol=0, rtol=0)


def test_a_request_alone_is_its_part_of_the_batch(shop: Corpus, builder: ContextBuilder) -> None:
    requests = some(shop)
    together, slots = builder.inputs(requests)
    for row in range(len(requests)):
        alone, _ = builder.inputs(requests.part(slice(row, row + 1)))
        for name, tensor in alone.items():
            whole = together[name][row : row + 1]
            if tensor.ndim > 1 and name != "query_vector":
                rest = whole[:, tensor.shape[1] :]
                assert (rest == (-1 if name == "slot_codes" else 0)).all(), f"{name}: only padding follows"
                whole = whole[:, : tensor.shape[1]]
            torch.testing.assert_close(tensor, whole, atol=1e-6, rtol=1e-6)
    held = (slots.item >= 0).sum(1)
    assert held.min() == 0 and held.max() == SLOTS, "histories of all lengths were seen"


def test_slots_hold_the_semantic_ids_of_the_selected_items(shop: Corpus, builder: ContextBuilder) -> None:
    inputs, slots = builder.inputs(some(shop))
    for row, items in enumerate(slots.item):
        held = items[items >= 0]
        np.testing.assert_array_equal(inputs["slot_codes"][row, : len(held)], builder.codes[held])
        assert (inputs["slot_codes"][row, len(held) :] == -1).all()


def test_every_request_has_something_to_read(shop: Corpus, builder: ContextBuilder) -> None:
    nothing = some(shop, 1).part(slice(0, 1))
    nothing.query[0] = "  "
    inputs, _ = builder.inputs(nothing)
    assert inputs["query_mask"].any() and (inputs["slot_codes"] == -1).all()
    nothing.query[0] = "soap " * 500
    assert builder.inputs(nothing)[0]["query_ids"].shape == (1, QUERY_TOKENS)


def test_the_prior_counts_nothing_after_the_request(shop: Corpus, builder: ContextBuilder) -> None:
    requests = some(shop)
    snapshot = builder.inputs(requests)[0]["snapshot"].numpy()
    assert (builder.popularities[0].starts[snapshot] <= requests.time).all()
    mass = builder.catalogue(PrefixIndex.build(builder.codes)).log_mass
    total = np.expm1(mass[0].numpy().astype(np.float64)).sum(1)  # below all prefixes of the first level: everything
    for column, counts in enumerate(builder.popularities):
        np.testing.assert_allclose(total[:, column], counts.counts.sum(1), rtol=1e-4, atol=1e-3)


def test_content_is_the_mean_vector_of_the_items_below(builder: ContextBuilder) -> None:
    index = PrefixIndex.build(builder.codes)
    vectors = builder.item_vectors
    for depth, content in enumerate(builder.catalogue(index).content, 1):
        prefixes = sorted({tuple(row[:depth].tolist()) for row in builder.codes})
        assert content.shape == (len(prefixes), vectors.shape[1])
        for prefix, mean in zip(prefixes, content, strict=True):
            items = (builder.codes[:, :depth] == prefix).all(1)
            np.testing.assert_allclose(mean, vectors[items].mean(0), atol=1e-5)


def test_coverage_of_a_prefix_is_that_of_all_its_items_together(shop: Corpus, builder: ContextBuilder) -> None:
    """It bounds the coverage of every item below; at the last level it is the item's own."""
    catalogue = builder.catalogue(PrefixIndex.build(builder.codes))
    requests = some(shop, 10)
    inputs, _ = builder.inputs(requests)
    queries = builder.encode(requests.query).texts
    path = catalogue.index.nodes(torch.from_numpy(builder.codes))
    every = np.arange(len(builder.codes))
    for row in range(len(requests)):
        own = queries.covered(np.full_like(every, row), builder.selector.texts, every)
        terms, weights = inputs["terms"][row : row + 1], inputs["term_weights"][row : row + 1]
        before = np.ones(len(every))
        for depth, nodes in enumerate(path):
            bound = catalogue.covered(depth, nodes, terms.expand(len(nodes), -1), weights).numpy()
            assert (bound <= before + 1e-5).all() and (bound >= own - 1e-5).all()
            before = bound
        np.testing.assert_allclose(before, own, atol=1e-5)
        ahead = catalogue.covered_ahead(terms, weights)[0, path[catalogue.ahead]]
        np.testing.assert_allclose(ahead, own, atol=1e-5)  # few items: the first choice looks down to each of them


def test_what_is_learnt_from_leaves_no_trace_in_the_vectors_of_training(
    shop: Corpus, word_encoder: StaticEncoder, builder: ContextBuilder
) -> None:
    """What was bought, clicked or put into a cart in the later events is exchanged, and nothing changes."""
    split = make_split(shop)
    later = np.flatnonzero(late(shop, split, 0.5) & (split == TRAIN))
    item, kind = shop.item.copy(), shop.kind.copy()
    item[later] = np.random.default_rng(0).permutation(item[later])
    kind[later[::2]] = EVENT_KINDS.index("click")
    changed = replace(shop, item=item, kind=kind)
    _, before = periods(changed, split, 0.5)
    other = ContextBuilder.fit(changed, split, before, word_encoder, builder.codes, SLOTS, seed=0)
    assert builder.selector.taste.shape == (len(shop.items), builder.taste.factors.shape[1])
    assert np.abs(builder.selector.taste).max() > 0
    np.testing.assert_array_equal(other.selector.taste, builder.selector.taste)
    assert (other.knowing(later).selector.taste != builder.knowing(later).selector.taste).any()
