"""Does reading a user cost more when the user has bought more?

    python -m benchmarks.long_history    # two minutes on two cores

A made-up log of one user with 100, 1,000 or 10,000 purchases of 2,000 items, and a batch of 8 requests at its end. An
untrained generator of the demo's size (BART, width 128, one encoder layer) reads them, as of `ContextBuilder`:

- qformer, lrea: the view `long`, from the lookup of the running sums to the encoder's output, with no history slots;
- events: no view; every purchase is an encoder position, the sum of its codes' embeddings, as a history slot is.

Everything else (the query's tokens and vector) is the same. Milliseconds are the median of five runs of the batch, per
request; MB is how far the peak of memory rises while the batch is read for the first time, in a process of its own, as
Linux counts it. Making the running sums is not in it: it happens once for the whole log, and is told as `build`. The
last line is for machines.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from benchmarks.memory import peak_bytes
from onesearch.context.history import FEATURES, HistorySlots
from onesearch.context.views.centroids import Centroids
from onesearch.context.views.long import CentroidSums, RecencySums
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.arrays import same_item_links
from onesearch.corpus.schema import EVENT_KINDS, OFFERS
from onesearch.model import Catalogue, Generator, GeneratorConfig
from onesearch.prefix import PrefixIndex
from training.sft import ModelArguments, new_backbone

EVENTS: Final = (100, 1_000, 10_000)
WAYS: Final = ("qformer", "lrea", "events")
ITEMS: Final = 2_000
SIZES: Final = (256, 256, 256)
VECTOR: Final = 128
BATCH: Final = 8
TOKENS: Final = 8
RUNS: Final = 5
CLEAR_REFS: Final = Path("/proc/self/clear_refs")


def made_up(events: int) -> Corpus:
    """A log of one user who bought so often, something random each time."""
    item = np.random.default_rng(0).integers(0, ITEMS, events).astype(np.int32)
    zeros = np.zeros(events, np.int32)
    next_same, nth_same = same_item_links(zeros, item)
    return Corpus(
        folder=Path(),
        info={"clock": True},
        items=pl.DataFrame({"item_id": [str(n) for n in range(ITEMS)]}),
        users=pl.DataFrame({"user_id": ["1"]}),
        relevance=pl.DataFrame(),
        offers=pl.LazyFrame(schema=OFFERS),
        user=zeros,
        item=item,
        time=np.arange(events, dtype=np.int64) * 3600,
        kind=np.full(events, EVENT_KINDS.index("purchase"), np.int8),
        session=zeros,
        query=zeros - 1,
        place=zeros - 1,
        device=zeros - 1,
        rank=zeros - 1,
        query_kind=np.full(events, -1, np.int8),
        query_noise=np.full(events, -1, np.int8),
        queries=[],
        places=[],
        devices=[],
        offsets=np.array([0, events]),
        history_end=np.arange(events, dtype=np.int64),
        next_same=next_same,
        nth_same=nth_same,
    )


def generator(codes: np.ndarray, views: dict[str, Any] | None, positions: int) -> Generator:
    """An untrained model of the demo's size."""
    torch.manual_seed(0)
    backbone = new_backbone(ModelArguments())
    backbone.max_position_embeddings = positions
    config = GeneratorConfig(
        backbone=backbone, level_sizes=list(SIZES), history_features=len(FEATURES), content=VECTOR, views=views
    )
    count = [torch.zeros(1, ITEMS) for _ in range(config.priors)]
    bits = torch.zeros(ITEMS, 16, dtype=torch.uint8)
    catalogue = Catalogue.build(PrefixIndex.build(codes), count, torch.zeros(ITEMS, VECTOR), bits)
    return Generator(config).eval().bind(catalogue)


def inputs_of(codes: np.ndarray, slots: np.ndarray) -> dict[str, Tensor]:
    """A batch of queries with (B, H) items in the history slots, -1 where empty."""
    random = torch.Generator().manual_seed(0)
    slot_codes = np.where(slots[..., None] >= 0, codes[slots], -1).astype(np.int64)
    return {
        "query_ids": torch.randint(3, 4000, (BATCH, TOKENS), generator=random),
        "query_mask": torch.ones(BATCH, TOKENS, dtype=torch.bool),
        "slot_codes": torch.from_numpy(slot_codes),
        "slot_features": torch.zeros(*slots.shape, len(FEATURES)),
        "slot_coverage": torch.zeros(*slots.shape),
        "query_vector": torch.randn(BATCH, VECTOR, generator=random),
        "terms": torch.zeros(BATCH, 1, dtype=torch.int64),
        "term_weights": torch.ones(BATCH, 1),
        "snapshot": torch.zeros(BATCH, dtype=torch.int64),
    }


def reading(way: str, events: int) -> tuple[Callable[[], object], float]:
    """What reads the batch, and the seconds that it took to make the running sums."""
    corpus, rng = made_up(events), np.random.default_rng(1)
    codes = np.stack([rng.integers(0, size, ITEMS) for size in SIZES], -1)
    vectors = rng.standard_normal((ITEMS, VECTOR), np.float32)
    requests = Requests.of(corpus, np.full(BATCH, events - 1))
    requests = replace(requests, history_end=np.full(BATCH, events))
    none = np.full((BATCH, 1), -1)
    if way == "events":
        model = generator(codes, None, events + TOKENS + 8)
        given = inputs_of(codes, np.broadcast_to(corpus.item[::-1], (BATCH, events)))
        return (lambda: model.read(**given)), 0.0
    start = perf_counter()
    if way == "qformer":
        view: CentroidSums | RecencySums = CentroidSums(corpus, Centroids.of(codes, vectors), 3)
    else:
        view = RecencySums(corpus, vectors, 3)
    seconds = perf_counter() - start
    model, given = generator(codes, {"long": view.sizes()}, 256), inputs_of(codes, none)
    slots = HistorySlots(none.astype(np.int32), none, np.zeros((BATCH, 1, len(FEATURES)), np.float32), none[..., None])

    def read() -> object:
        arrays = view.read(requests, slots)
        return model.read(**given, views={name: torch.from_numpy(array) for name, array in arrays.items()})

    return read, seconds


def measure(way: str, events: int) -> dict[str, float]:
    """Milliseconds a request, MB, and seconds to build."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        reading(way, 10)[0]()  # whatever a first read loads is not counted
        read, build = reading(way, events)
        CLEAR_REFS.write_text("5")  # the peak begins anew
        before = peak_bytes()
        read()
        rise = peak_bytes() - before
        times = []
        for _ in range(RUNS):
            start = perf_counter()
            read()
            times.append(perf_counter() - start)
    return {"ms": 1000 * median(times) / BATCH, "mb": rise / 2**20, "build_s": build}


def main() -> None:
    """Print a table, and one JSON object."""
    found: dict[str, Any] = {}
    print(f"{'':10}{'events':>8}{'ms a request':>14}{'MB':>8}{'build s':>9}")
    for way in WAYS:
        for events in EVENTS:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                one = pool.submit(measure, way, events).result()
            found[way] = found.get(way, {}) | {str(events): {name: round(value, 3) for name, value in one.items()}}
            print(f"{way:10}{events:8,}{one['ms']:14.2f}{one['mb']:8.1f}{one['build_s']:9.3f}")
    most, least = str(EVENTS[-1]), str(EVENTS[0])
    for way in WAYS:
        found[f"{way}_growth"] = round(found[way][most]["ms"] / found[way][least]["ms"], 2)
    for way in ("qformer", "lrea"):
        found[f"{way}_speedup"] = round(found["events"][most]["ms"] / found[way][most]["ms"], 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
