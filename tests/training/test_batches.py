"""Training batches: the same requests as everywhere else, and the same batches however many processes there are."""

from collections.abc import Iterator
from threading import Event, current_thread, main_thread

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from catalogues import random_codes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from onesearch.context.batch import ContextBuilder
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.embed.static import StaticEncoder
from onesearch.errors import UserError
from training import batches as batches_module
from training.batches import MEGABATCH, Events, OneAhead, SimilarLengths, TrainingBatches


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=400),
    batch=st.integers(1, 9),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_an_epoch_is_whole_batches_of_different_examples(lengths: list[int], batch: int, epoch: int, seed: int) -> None:
    sampler = SimilarLengths(np.array(lengths, np.int64), batch, seed)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler) == len(lengths) // batch * batch
    assert len(set(order)) == len(order) and set(order) <= set(range(len(lengths)))
    assert order == list(sampler), "the same order when it is read again, as a resumed training does"


def test_epochs_and_seeds_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 500)
    first, other = SimilarLengths(lengths, 8, seed=1), SimilarLengths(lengths, 8, seed=2)
    before = list(first)
    assert before != list(other)
    first.set_epoch(1)
    assert before != list(first)


def test_the_queries_of_a_batch_are_of_similar_length_and_batches_come_in_no_order() -> None:
    batch = 8
    lengths = np.random.default_rng(0).integers(1, 40, batch * MEGABATCH * 4)
    batches = lengths[list(SimilarLengths(lengths, batch, seed=0))].reshape(-1, batch)
    assert np.ptp(batches, axis=1).mean() < 0.2 * np.ptp(lengths.reshape(-1, batch), axis=1).mean()
    longest = batches.max(1)
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.4


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_see_the_batches_of_one(processes: int) -> None:
    whole, size = 16, 203
    lengths = np.random.default_rng(3).integers(1, 9, size)

    def batches(process: int, count: int) -> list[list[int]]:
        sampler = BatchSampler(SimilarLengths(lengths, whole, seed=0), whole // count, drop_last=True)
        return list(BatchSamplerShard(sampler, count, process))

    parts = [batches(process, processes) for process in range(processes)]
    joined = [[row for part in step for row in part] for step in zip(*parts, strict=True)]
    assert joined == batches(0, 1)
    assert len(joined) == size // whole


def test_queries_encoded_in_blocks_are_the_same(
    shop: Corpus, word_encoder: StaticEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = random_codes(np.random.default_rng(0), len(shop.items), (8, 8, 8), unique=True)
    builder = ContextBuilder.fit(shop, make_split(shop), np.arange(0), word_encoder, codes, 4, seed=0)
    events = np.arange(len(shop.item))
    whole = TrainingBatches(builder, events)(events[::7])
    monkeypatch.setattr(batches_module, "ENCODED", 5)
    pieces = TrainingBatches(builder, events)(events[::7])
    assert whole.keys() == pieces.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, atol=1e-6, rtol=1e-6)


def test_a_batch_holds_the_inputs_of_its_requests_and_their_semantic_ids(
    shop: Corpus, word_encoder: StaticEncoder
) -> None:
    codes = random_codes(np.random.default_rng(0), len(shop.items), (8, 8, 8), unique=True)
    builder = ContextBuilder.fit(shop, make_split(shop), np.arange(0), word_encoder, codes, 4, seed=0)
    events = np.random.default_rng(1).permutation(len(shop.item))[:200]
    batches, examples = TrainingBatches(builder, events), Events(events)
    chosen = [examples[place] for place in (5, 0, 17, 5, 199)]
    expected, _ = builder.inputs(Requests.of(shop, np.array(chosen)))
    batch = batches(chosen)
    torch.testing.assert_close(batch.pop("labels"), torch.from_numpy(codes[shop.item[chosen]].astype(np.int64)))
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(batches.lengths(np.array(chosen)), expected["query_mask"].sum(1).clamp(min=1))


def test_the_next_batch_is_made_while_one_is_learnt_from() -> None:
    made, wanted = [], Event()

    def batches() -> Iterator[int]:
        for number in range(3):
            made.append((number, current_thread() is main_thread()))
            if number == 1:
                wanted.set()
            yield number

    ahead = OneAhead(batches())
    assert next(ahead) == 0
    assert wanted.wait(10)  # nobody has asked for it
    assert list(ahead) == [1, 2]
    assert next(ahead, None) is None
    assert made == [(number, False) for number in range(3)]


def test_a_mistake_in_a_batch_is_told_where_the_batch_is_asked_for() -> None:
    def batches() -> Iterator[int]:
        yield 0
        raise UserError("no such event")

    ahead = OneAhead(batches())
    assert next(ahead) == 0
    with pytest.raises(UserError, match="no such event"):
        next(ahead)
