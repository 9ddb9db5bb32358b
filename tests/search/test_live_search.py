"""A generator searches while items come and go: a search keeps its snapshot, and the next one knows of every change."""

from __future__ import annotations

import threading

import numpy as np
import torch
from catalogues import (
    CONTENT,
    PRIORS,
    SNAPSHOTS,
    TASTE,
    TERMS,
    batch,
    code_log_prob,
    random_batch,
    random_codes,
    random_generator,
)

from onesearch.live import LiveIndex
from onesearch.model.catalogue import Catalogue
from onesearch.prefix import PrefixIndex
from onesearch.search import GeneratorScorer, beam_search

SIZES = (4, 5, 6)
ITEMS, LATER = 40, 40
"""On sale at the beginning, and those that may come."""

rng = np.random.default_rng(0)
CODES = random_codes(rng, ITEMS + LATER, SIZES, False)
COUNTS = list(torch.rand(PRIORS, SNAPSHOTS, len(CODES), generator=torch.Generator().manual_seed(0)) * 20)
VECTORS = torch.randn(len(CODES), CONTENT + TASTE, generator=torch.Generator().manual_seed(1))
BITS = torch.from_numpy(rng.integers(0, 256, (len(CODES), TERMS // 8), np.uint8))


def test_a_snapshot_scores_like_a_catalogue_that_was_made_of_its_items() -> None:
    live = LiveIndex(PrefixIndex.build(CODES[:ITEMS], level_sizes=SIZES), SIZES)
    live.remove(np.arange(0, 20, 2))
    live.insert(np.arange(60, 70), CODES[60:70])
    kept = np.r_[1:20:2, 20:40, 60:70]
    model, inputs = random_generator(0, CODES, SIZES), batch(random_batch(rng, CODES[kept]))
    model.bind(Catalogue.build(live.snapshot.index, COUNTS, VECTORS, BITS))
    found = code_log_prob(model, inputs, CODES[kept])
    parts = [one[:, kept] for one in COUNTS], VECTORS[kept], BITS[kept]
    model.bind(Catalogue.build(PrefixIndex.build(CODES[kept], level_sizes=SIZES), *parts))
    torch.testing.assert_close(found, code_log_prob(model, inputs, CODES[kept]), atol=1e-5, rtol=1e-5)


def test_a_search_keeps_its_snapshot_and_the_next_knows_of_every_change() -> None:
    live = LiveIndex(PrefixIndex.build(CODES[:ITEMS], level_sizes=SIZES), SIZES)
    model = random_generator(0, CODES, SIZES)
    model.bind(Catalogue.build(live.snapshot.index, COUNTS, VECTORS, BITS))
    on_sale, bound = [frozenset(range(ITEMS))], [0]  # what each catalogue holds, and the newest that is bound
    stop, searched = threading.Event(), [0]
    problems: list[str] = []

    def write() -> None:
        random, there = np.random.default_rng(1), set(range(ITEMS))
        while not stop.is_set():
            item = int(random.integers(len(CODES)))
            change = np.array([item])
            if item not in there:
                live.insert(change, CODES[change])
                there.add(item)
            elif len(there) > ITEMS // 2:
                live.remove(change)
                there.remove(item)
            catalogue = Catalogue.build(live.snapshot.index, COUNTS, VECTORS, BITS)
            on_sale.append(frozenset(there))
            model.bind(catalogue)
            bound[0] += 1

    def search(seed: int) -> None:
        inputs = batch(random_batch(np.random.default_rng(seed), CODES))
        while not stop.is_set():
            first = bound[0]
            found = beam_search(GeneratorScorer(model, model.read(**inputs)), len(CODES), len(CODES))
            for row in found.items.tolist():
                if frozenset(item for item in row if item >= 0) not in on_sale[first:]:
                    problems.append(f"{row} was not on sale, of one snapshot, when it was searched for")
            searched[0] += 1

    threads = [threading.Thread(target=write), *(threading.Thread(target=search, args=(seed,)) for seed in (2, 3))]
    for thread in threads:
        thread.start()
    while (searched[0] < 40 or len(on_sale) <= 11) and all(thread.is_alive() for thread in threads):
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not problems and searched[0] >= 40 and len(on_sale) > 10
