"""The beam against brute force: every item scored by a teacher-forced pass of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from catalogues import CONTENT, TASTE, TERMS, batch, code_log_prob, random_batch, random_codes, random_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.model import Generator
from onesearch.model.catalogue import Catalogue
from onesearch.prefix import PrefixIndex
from onesearch.search import GeneratorScorer, beam_search

EXACT = {"atol": 2e-4, "rtol": 1e-4}
"""Two ways to the same sum of float32 logarithms."""

catalogues = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "items": st.integers(1, 60),
        "sizes": st.sampled_from([(8, 8), (4, 5, 6), (2, 40), (64,), (3, 3, 3, 3)]),
        "unique": st.booleans(),
        "family": st.sampled_from(["bart", "t5"]),
        "copy": st.booleans(),
        "prior": st.booleans(),
        "content": st.booleans(),
        "spelling": st.booleans(),
        "offers": st.sampled_from([0, 2]),
    }
)


Made = tuple[Generator, list[dict[str, Tensor]], NDArray[np.int32], NDArray[np.int32]]


def made(seed: int, items: int, sizes: tuple[int, ...], unique: bool, family: str, **parts: int) -> Made:
    """A generator, three requests, and the codes and leaf order of its catalogue."""
    rng = np.random.default_rng(seed)
    codes = random_codes(rng, items, sizes, unique)
    order = rng.permutation(items).astype(np.int32)
    model = random_generator(seed, codes, sizes, family, order=order, **parts)
    return model, random_batch(rng, codes), codes, order


def ranked(scores: NDArray[np.float64], codes: NDArray[np.int32], order: NDArray[np.int32]) -> list[int]:
    """Items by score, those of one semantic ID together in their order."""
    shared: dict[tuple[int, ...], float] = {}
    for item in range(len(codes)):
        shared.setdefault(tuple(codes[item]), float(scores[item]))
    return sorted(range(len(codes)), key=lambda item: (-shared[tuple(codes[item])], tuple(codes[item]), order[item]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(catalogues)
def test_a_beam_as_wide_as_the_catalogue_is_brute_force(catalogue: dict[str, Any]) -> None:
    model, requests, codes, order = made(**catalogue)
    inputs = batch(requests)
    scores = code_log_prob(model, inputs, codes).sum(-1).double().numpy()
    found = beam_search(GeneratorScorer(model, model.read(**inputs)), beams=len(codes), k=len(codes))
    for row, expected in enumerate(scores):
        items = found.items[row].tolist()
        assert sorted(items) == list(range(len(codes))), "every item, none twice"
        np.testing.assert_allclose(found.scores[row], expected[items], **EXACT)
        assert (np.diff(found.scores[row]) <= 0).all(), "best first"
        place = {item: place for place, item in enumerate(items)}
        for one, other in zip(wanted := ranked(expected, codes, order), wanted[1:], strict=False):
            if (codes[one] == codes[other]).all():
                assert place[other] == place[one] + 1, "items of one semantic ID follow each other in their order"


@settings(max_examples=20, deadline=None, derandomize=True)
@given(catalogues, st.integers(1, 60))
def test_a_filter_leaves_scores_as_they_are(catalogue: dict[str, Any], k: int) -> None:
    model, requests, codes, order = made(**catalogue)
    inputs = batch(requests)
    scores = code_log_prob(model, inputs, codes).sum(-1).double().numpy()
    rng = np.random.default_rng(catalogue["seed"])
    mask = torch.from_numpy(rng.random((len(requests), len(codes))) < rng.random((len(requests), 1)))
    scorer = GeneratorScorer(model, model.read(**inputs))
    found = beam_search(scorer, len(codes), k, Allowed.of(scorer.index, mask))
    assert found.exact.all()
    for row, expected in enumerate(scores):
        wanted = [item for item in ranked(expected, codes, order) if mask[row, item]][:k]
        items = found.items[row][found.items[row] >= 0].tolist()
        assert items == wanted
        np.testing.assert_allclose(found.scores[row][: len(items)], expected[wanted], **EXACT)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(catalogues)
def test_the_probabilities_of_all_semantic_ids_sum_to_one(catalogue: dict[str, Any]) -> None:
    model, requests, codes, _ = made(**catalogue)
    scores = code_log_prob(model, batch(requests), np.unique(codes, axis=0)).sum(-1)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(len(requests)), atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(catalogues, st.integers(1, 6), st.integers(1, 8))
def test_a_narrow_beam_is_a_plain_beam_search(catalogue: dict[str, Any], beams: int, k: int) -> None:
    model, requests, codes, order = made(**catalogue)
    inputs = batch(requests)
    levels = code_log_prob(model, inputs, codes).cumsum(-1).double().numpy()
    found = beam_search(GeneratorScorer(model, model.read(**inputs)), beams, k)
    for row in range(len(requests)):
        prefixes: set[tuple[int, ...]] = {()}
        for depth in range(1, codes.shape[1] + 1):
            score = {
                tuple(codes[item, :depth]): levels[row, item, depth - 1]
                for item in range(len(codes))
                if tuple(codes[item, : depth - 1]) in prefixes
            }
            prefixes = set(sorted(score, key=lambda prefix: -score[prefix])[: max(beams, k)])
        reached = [item for item in ranked(levels[row, :, -1], codes, order) if tuple(codes[item]) in prefixes][:k]
        items = found.items[row][found.items[row] >= 0].tolist()
        assert items == reached
        np.testing.assert_allclose(found.scores[row][: len(items)], levels[row, reached, -1], **EXACT)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(catalogues)
def test_a_request_alone_finds_what_it_finds_in_a_batch(catalogue: dict[str, Any]) -> None:
    model, requests, codes, _ = made(**catalogue)
    together = code_log_prob(model, batch(requests), codes)
    for row, request in enumerate(requests):
        torch.testing.assert_close(code_log_prob(model, request, codes)[0], together[row], **EXACT)
    found = beam_search(GeneratorScorer(model, model.read(**batch(requests))), beams=5, k=5)
    for row, request in enumerate(requests):
        alone = beam_search(GeneratorScorer(model, model.read(**request)), beams=5, k=5)
        assert alone.items[0].tolist() == found.items[row].tolist()
        torch.testing.assert_close(alone.scores[0], found.scores[row], **EXACT)


def test_fewer_items_than_asked_leave_places_empty() -> None:
    codes = np.array([[0, 1], [0, 1], [2, 0]], np.int32)
    model = random_generator(1, codes, (3, 2))
    requests = random_batch(np.random.default_rng(1), codes)
    found = beam_search(GeneratorScorer(model, model.read(**batch(requests))), beams=4, k=7)
    assert found.items.shape == found.scores.shape == (len(requests), 7)
    assert (found.items[:, :3].sort(1).values == torch.arange(3)).all()
    assert (found.items[:, 3:] == -1).all() and found.scores[:, 3:].isneginf().all()


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_history_popularity_content_and_spelling_by_hand(family: str) -> None:
    """With all weights zero only what is switched on speaks, and its numbers can be worked out by hand."""
    codes = np.array([[0, 0], [0, 1], [1, 0]], np.int32)
    model = random_generator(0, codes, (2, 2), family)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    request = random_batch(np.random.default_rng(0), codes, 1)[0]
    request |= {"slot_codes": torch.tensor([[[0, 1]]]), "slot_features": torch.zeros(1, 1, 5)}
    request["slot_coverage"] = torch.zeros(1, 1)
    counts, vectors = torch.tensor([3.0, 0.0, 8.0]).expand(3, 3), torch.zeros(3, CONTENT + TASTE)
    vectors[:, 0] = torch.tensor([2.0, 4.0, 6.0]).log()
    bits = torch.zeros(3, TERMS // 8, dtype=torch.uint8)
    bits[:, 1] = torch.tensor([0b01, 0b10, 0b10])  # terms 8 and 9
    model.bind(Catalogue.build(PrefixIndex.build(codes), [counts, counts], vectors, bits))

    def scored() -> torch.Tensor:
        return code_log_prob(model, request, codes)[0].exp()

    model.copies.features[-1].bias.data = torch.tensor([1.0, 3.0]).log()
    # every item has its equal share of 1, and the purchase (0, 1) adds 1 to code 0 and, below it, 3 to code 1
    torch.testing.assert_close(scored(), torch.tensor([[5 / 6, 1 / 8], [5 / 6, 7 / 8], [1 / 6, 1.0]]))

    torch.nn.init.constant_(model.sources.prior_gate.bias, 0.5)  # both priors with half their weight
    # exp(log(1 + 3)) = 4 to 1 below code 0, so 5 to 9 at the root, as shares of 1; the purchase adds 1 and 3
    torch.testing.assert_close(scored(), torch.tensor([[19 / 28, 1 / 5], [19 / 28, 4 / 5], [9 / 28, 1.0]]))
    torch.nn.init.zeros_(model.sources.prior_gate.bias)

    assert model.sources.content_query is not None
    model.sources.content_query.weight.data[:, 0] = torch.eye(CONTENT + TASTE)[0].repeat(2)  # of the first components
    request["query_vector"] = torch.eye(CONTENT + 2 * TASTE)[:1]
    # 2 to 4 below code 0, so 6 to 6 at the root; the purchase adds 1 and 3
    torch.testing.assert_close(scored(), torch.tensor([[3 / 4, 1 / 12], [3 / 4, 11 / 12], [1 / 4, 1.0]]))
    torch.nn.init.zeros_(model.sources.content_query.weight)

    assert model.sources.spelling_gate is not None
    model.sources.spelling_gate.bias.data[::3] = np.log(16)  # the first power of each level
    request |= {"terms": torch.tensor([[8, 9]]), "term_weights": torch.tensor([[0.25, 0.75]])}
    # the best items cover three quarters, the first item a third of that; the purchase adds 1 and 3
    third = 16 ** (1 / 3)
    root, first = (third + 16) / (third + 32), third / (third + 16)
    expected = [[(root + 1) / 2, first / 4], [(root + 1) / 2, (4 - first) / 4], [(1 - root) / 2, 1.0]]
    torch.testing.assert_close(scored(), torch.tensor(expected))
