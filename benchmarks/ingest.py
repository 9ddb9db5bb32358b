"""Does a log that does not fit into memory become a corpus and training batches?

    python -m benchmarks.ingest --out runs/ingest                        # two million events, a minute or two
    python -m benchmarks.ingest --out runs/ingest --events 50_000_000    # needs 5 GB of disk and at most 8 GB of memory

Three processes, one after the other:

- generate: a log in the order of time, as shops write it, so that every user is spread over the whole file. Four events
  a session (two impressions, clicks, now and then a purchase), 50 events a user, up to 200,000 items, five ways to ask
  for each, most of them shared; users, items and queries follow power laws, and half of what a user looks at is one of
  a few favourites;
- prepare: the command `onesearch prepare`, from the files to the corpus;
- examples: what training does before its first step (split, tokenizer, relevance space, tastes, running counts,
  queries), and then batches of 512 as training gathers them, with arbitrary semantic IDs.

Peaks are of resident memory, pages of memory maps included. The last line is for machines.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.memory import peak_bytes

YEAR: Final = 365 * 86_400
BEGIN: Final = 1_700_000_000
SESSION: Final = 4
"""Events a session."""
LATER: Final = np.array([0, 0, 20, 45])
"""Seconds after its begin."""
BLOCK: Final = 1 << 16
"""Sessions generated at a time."""
FAVOURITES: Final = 8
BATCH, BATCHES = 512, 100
KINDS: Final = ("cereal", "coffee", "soap", "pet food", "chips", "juice", "bread", "cheese", "tea", "rice")
TRAITS: Final = ("fresh", "dark", "mild", "crunchy", "plain", "organic", "salted", "sweet", "light", "strong")
SIZES: Final = ("small", "medium", "large", "family size", "twin pack")
QUERIES: Final = 5
log = logging.getLogger(__name__)


def generate(folder: Path, events: int, suffix: str) -> None:
    """Write `items` and `events` of a log of about so many events; the same number gives the same log."""
    folder.mkdir(parents=True)
    items, users, sessions = max(min(events // 50, 200_000), 50), max(events // 50, 10), events // SESSION
    catalogue = pl.DataFrame({"item": np.arange(items)}).select(
        item_id=pl.format("p{}", "item"),
        title=pl.format(
            "{} {} {} no. {}",
            _word(TRAITS, pl.col("item")),
            _word(KINDS, pl.col("item") // 10),
            _word(SIZES, pl.col("item") // 100),
            pl.col("item") // 500,
        ),
        brand=pl.format("brand {}", pl.col("item") % 97),
        categories=pl.concat_list(_word(KINDS, pl.col("item") // 10), _word(SIZES, pl.col("item") // 100)),
        price=(pl.col("item") % 400 + 99) / 100,
    )
    _write(folder / f"items{suffix}", [catalogue])
    blocks = (
        _block(np.random.default_rng((7, start)), start, min(BLOCK, sessions - start), items, users, sessions)
        for start in range(0, sessions, BLOCK)
    )
    _write(folder / f"events{suffix}", blocks)


def _block(random: np.random.Generator, start: int, count: int, items: int, users: int, sessions: int) -> pl.DataFrame:
    """Sessions `start` to `start + count` of the log."""
    user = _power(random.random(count), 0.5, users)
    favourite = (user * 2_654_435_761 + random.integers(0, FAVOURITES, count) * 40_503) % 1_000_003 / 1_000_003
    item = _power(np.where(random.random(count) < 0.5, favourite, random.random(count)), 0.7, items)
    other = _power(random.random(count), 0.7, items)
    variant = _power(random.random(count), 0.5, QUERIES)
    time = BEGIN + (np.arange(start, start + count) + random.random(count)) * (YEAR / sessions)
    bought = random.random(count) < 0.4
    kinds = [["impression"] * count, ["impression"] * count, ["click"] * count, np.where(bought, "purchase", "click")]
    frame = pl.DataFrame(
        {
            "user": np.repeat(user, SESSION),
            "item": np.stack([other, item, item, np.where(bought, item, other)], axis=1).ravel(),
            "asked": np.repeat(item, SESSION),
            "variant": np.repeat(variant, SESSION),
            "session": np.repeat(np.arange(start, start + count), SESSION),
            "timestamp": np.add.outer(time.astype(np.int64), LATER).ravel(),
            "event": np.stack(kinds, axis=1).ravel(),
            "rank": np.tile(np.array([0, 1, 1, 1], np.int32), count),
        }
    )
    asked = pl.col("asked")
    texts = [
        pl.format("{} {} {}", _word(KINDS, asked // 10), asked // 500, word)
        for word in (_word(TRAITS, asked), _word(SIZES, asked // 100), pl.format("brand {}", asked % 97))
    ]
    texts += [pl.format("{} {}", _word(KINDS, asked // 10), asked), pl.format("{}", _word(KINDS, asked // 10))]
    query = pl.coalesce(pl.when(pl.col("variant") == number).then(text) for number, text in enumerate(texts))
    return frame.select(
        user_id=pl.format("u{}", "user"),
        item_id=pl.format("p{}", "item"),
        event="event",
        timestamp="timestamp",
        query=query,
        session_id=pl.format("s{}", "session"),
        rank="rank",
    )


def _power(uniform: NDArray[np.float64], exponent: float, size: int) -> NDArray[np.int64]:
    """(n,) draws below `size` of which number r has a chance like `r ** -exponent`."""
    return (size * uniform ** (1 / (1 - exponent))).astype(np.int64)


def _word(words: tuple[str, ...], number: pl.Expr) -> pl.Expr:
    return (number % len(words)).replace_strict(dict(enumerate(words)), return_dtype=pl.String)


def _write(path: Path, blocks: Any) -> None:
    writer, handle = None, path.open("wb")
    for block in blocks:
        if path.suffix == ".jsonl":
            block.write_ndjson(handle)
            continue
        table = block.to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(handle, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    handle.close()


def prepare(run: Path, source: str, path: Path) -> dict[str, float]:
    """Seconds and peak memory of `onesearch prepare`, to be called in a process of its own."""
    started = perf_counter()
    from onesearch.cli import app

    if status := app(["prepare", "--run", str(run), "--source", source, "--path", str(path)], standalone_mode=False):
        raise SystemExit(status)
    return {"prepare_s": perf_counter() - started, "prepare_peak_mb": peak_bytes() / 1e6}


def examples(run: Path) -> dict[str, float]:
    """Training batches from a prepared run, in a process of its own: seconds before the first, examples a second."""
    from onesearch.context.batch import ContextBuilder
    from onesearch.corpus import VALID, Corpus, make_split, sample_requests
    from onesearch.embed import load_text_encoder
    from onesearch.run import Run
    from training.batches import SimilarLengths, TrainingBatches
    from training.sft import ModelArguments, periods

    started, model = perf_counter(), ModelArguments()
    settings = Run.open(run).settings
    corpus = Corpus.load(run / "corpus")
    split = make_split(corpus, settings.split)
    events, before = periods(corpus, split, model.recent)
    held_out = sample_requests(corpus, split, VALID, model.valid_requests, settings.seed)
    codes = np.random.default_rng(7).integers(0, 256, (len(corpus.items), 4))
    encoder = load_text_encoder(settings.encoder)
    builder = ContextBuilder.fit(corpus, split, before, encoder, codes, model.slots, settings.seed)
    batches = TrainingBatches(builder, np.concatenate([events, held_out.event]))
    order = iter(SimilarLengths(batches.lengths(events), BATCH, settings.seed))
    ready = perf_counter()
    count = min(BATCHES, len(events) // BATCH)
    for _ in range(count):
        batches([int(events[next(order)]) for _ in range(BATCH)])
    return {
        "fit_s": ready - started,
        "examples": len(events),
        "examples_per_s": count * BATCH / (perf_counter() - ready),
        "examples_peak_mb": peak_bytes() / 1e6,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="New folder for log and corpus.")
    parser.add_argument("--events", type=int, default=2_000_000, help="How many.")
    parser.add_argument("--source", choices=("parquet", "jsonl"), default="parquet", help="How the log is written.")
    parser.add_argument("--keep", action="store_true", help="Leave the folder there.")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.out.exists():
        parser.error(f"{options.out} is there already")
    run, source = options.out / "run", options.out / "log"
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        pool.submit(generate, source, options.events, f".{options.source}").result()
        size = sum(path.stat().st_size for path in source.iterdir())
        log.info("%s events, %.1f GB of %s", f"{options.events // SESSION * SESSION:,}", size / 1e9, options.source)
        figures = pool.submit(prepare, run, options.source, source).result()
        facts = json.loads((run / "corpus/corpus.json").read_text())
        figures |= {"events": facts["events"], "events_per_s": facts["events"] / figures["prepare_s"]}
        log.info("%s users, %s items, %s queries", *(f"{facts[key]:,}" for key in ("users", "items", "queries")))
        log.info("prepare: %.0f s, %.0f MB at most", figures["prepare_s"], figures["prepare_peak_mb"])
        figures |= pool.submit(examples, run).result()
    log.info("before the first batch: %.0f s; then %.0f examples/s", figures["fit_s"], figures["examples_per_s"])
    if not options.keep:
        shutil.rmtree(options.out)
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
