"""How fast, how large and how live is the prefix index?

    python -m benchmarks.prefix                 # a million semantic IDs, half a minute
    python -m benchmarks.prefix --full          # and ten million
    python -m benchmarks.prefix --rows 100000

Semantic IDs of four levels of 256 codes, drawn evenly (the worst case: next to no prefixes are shared at the last
levels). Each size in a process of its own:

- build: seconds, MB of all arrays, MB of the process's peak above what it held with the codes (N, 4) int32 in memory;
- save and load: seconds, the checksum included, and MB of the file that are resident after the load;
- filter: from a mask over all items to `Allowed`, per request; then `below` for the (4, 256, 256) children that four
  requests with 256 beams look at in one step;
- live: four threads that insert and remove 100 items a call, and 64 that do so with one item a call, each for some
  seconds while a reader thread takes a snapshot, filters it and looks below a thousand prefixes, over and over. Changes
  count once they are visible, one for each item; the reader's rounds are told too.

Seconds are the best of three. The last line is for machines; its live figure is that of 100 items a call.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.memory import peak_bytes
from onesearch.allowed import Allowed
from onesearch.live import LiveIndex
from onesearch.prefix import PrefixIndex

SIZES: Final = (256,) * 4
log = logging.getLogger(__name__)


def semantic_ids(rows: int, seed: int = 0) -> NDArray[np.int32]:
    """(rows, 4) codes."""
    codes = np.empty((rows, len(SIZES)), np.int32)
    rng = np.random.default_rng(seed)
    for start in range(0, rows, 1 << 16):
        codes[start : start + (1 << 16)] = rng.integers(0, 256, (min(1 << 16, rows - start), len(SIZES)))
    return codes


def built(rows: int, folder: str) -> dict[str, float]:
    """Seconds and MB of build, save and load; the file stays in the folder."""
    codes, path = semantic_ids(rows), Path(folder) / "prefix.safetensors"
    PrefixIndex.build(codes[:1000])
    before = peak_bytes() / 2**20
    index = PrefixIndex.build(codes, level_sizes=SIZES)
    peak = peak_bytes() / 2**20 - before
    seconds = min(_seconds(lambda: PrefixIndex.build(codes, level_sizes=SIZES)) for _ in range(3))
    save = min(_seconds(lambda: index.save(path)) for _ in range(3))
    return {"build_s": seconds, "index_mb": index.nbytes / 1e6, "peak_mb": peak, "save_s": save}


def mapped(folder: str) -> dict[str, float]:
    """Seconds of load, and MB of the process that the load added, of them mapped from the file."""
    path = Path(folder) / "prefix.safetensors"
    before = psutil.Process().memory_info()
    kept: list[PrefixIndex] = []
    seconds = _seconds(lambda: kept.append(PrefixIndex.load(path)))
    after = psutil.Process().memory_info()
    private = (after.rss - after.shared) - (before.rss - before.shared)
    return {"load_s": seconds, "own_mb": private / 1e6, "mapped_mb": (after.shared - before.shared) / 1e6}


def filtered(rows: int) -> dict[str, float]:
    """Milliseconds of a filter that a tenth of the items pass."""
    index, rng = PrefixIndex.build(semantic_ids(rows)), np.random.default_rng(1)
    mask = torch.from_numpy(rng.random((4, rows)) < 0.1)
    allowed = Allowed.of(index, mask)
    parents = torch.from_numpy(rng.integers(0, len(index.code[1]), (4, 256)))
    nodes = index.children(2, parents)[0]
    nodes = nodes[..., torch.arange(256) % nodes.shape[-1]]
    return {
        "allowed_ms": 1e3 * min(_seconds(lambda: Allowed.of(index, mask[:1])) for _ in range(9)),
        "allowed_of_4_ms": 1e3 * min(_seconds(lambda: Allowed.of(index, mask)) for _ in range(9)) / 4,
        "below_ms": 1e3 * min(_seconds(lambda: allowed.below(3, nodes)) for _ in range(9)),
    }


def live(rows: int, threads: int, batch: int, seconds: float) -> dict[str, float]:
    """Changes a second, snapshots a second and rounds of a reader."""
    index = LiveIndex(PrefixIndex.build(semantic_ids(rows), level_sizes=SIZES), SIZES)
    stop, changes, rounds = threading.Event(), [0] * threads, [0]

    def write(writer: int) -> None:
        rng = np.random.default_rng(writer)
        items = rows + writer * batch + np.arange(batch)
        while not stop.is_set():
            index.insert(items, rng.integers(0, 256, (batch, len(SIZES))))
            index.remove(items)
            changes[writer] += 2 * batch

    def read() -> None:
        rng = np.random.default_rng(threads)
        mask = torch.from_numpy(rng.random((1, rows + threads * batch)) < 0.1)
        while not stop.is_set():
            now = index.snapshot.index
            nodes = torch.from_numpy(rng.integers(0, len(now.code[2]), (4, 256)))
            Allowed.of(now, mask).below(3, nodes)
            rounds[0] += 1

    working = [threading.Thread(target=write, args=(writer,)) for writer in range(threads)]
    working.append(threading.Thread(target=read))
    start = perf_counter()
    for thread in working:
        thread.start()
    stop.wait(seconds)
    stop.set()
    for thread in working:
        thread.join()
    took = perf_counter() - start
    made = index.snapshot.version - 1
    return {"changes_per_s": sum(changes) / took, "snapshots_per_s": made / took, "reads_per_s": rounds[0] / took}


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def _alone(work: Callable[..., dict[str, float]], *arguments: object) -> dict[str, float]:
    """Run in a process of its own, and tell."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        figures = pool.submit(work, *arguments).result()
    told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    log.info("%s %s: %s", work.__name__, " ".join(f"{one:,}" for one in arguments if isinstance(one, int)), told)
    return figures


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--full", action="store_true", help="ten million too")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each live run")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figures: dict[str, float] = {}
    for name, rows in (("1m", options.rows), ("10m", 10_000_000))[: 1 + options.full]:
        with tempfile.TemporaryDirectory() as folder:
            found = _alone(built, rows, folder)
            _alone(mapped, folder)
        figures |= {f"build_{name}_s": round(found["build_s"], 3), f"index_{name}_mb": round(found["index_mb"], 1)}
    figures["allowed_1m_ms"] = round(_alone(filtered, options.rows)["allowed_ms"], 2)
    _alone(live, options.rows, 64, 1, options.seconds)
    figures["live_changes_per_s"] = round(_alone(live, options.rows, 4, 100, options.seconds)["changes_per_s"])
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
