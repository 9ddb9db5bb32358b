"""How fast is residual k-means, and in how much memory, beside faiss and beside its own matrix products?

    python -m benchmarks.quantize                   # a million vectors, about ten minutes on two cores
    python -m benchmarks.quantize --rows 100000
    python -m benchmarks.quantize --rows 10000000 --width 64 --alone    # without faiss; 2.6 GB in TMPDIR

Vectors of a mixture of clusters lie in a file that is mapped. For 3x256 and for 4096/1024/512 codes, each in a process
of its own, on the same threads and with the same sample and number of iterations a level:

- `ResidualKMeans`: fit, encode, and the peak of the process (the pages of the mapped file count);
- the floor of encoding: the products of all vectors with all codebooks, through the same blocks; nothing that finds the
  exact nearest centroid by way of them can be faster. Encoding and floor take turns, slice by slice;
- faiss: `faiss.Kmeans` of each level, `index.search`, residual, in NumPy.

Of a clock shared with other work the CPU seconds say more; both are printed. The last line is for machines: the worse
of both shapes, by the clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from threading import local
from time import perf_counter, process_time
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.memory import peak_bytes
from quantizers import ResidualKMeans, reconstruction_error
from quantizers.parallel import in_blocks

SHAPES: Final = ((256, 256, 256), (4096, 1024, 512))
_SLICES: Final = 10
_ROWS: Final = 4096
log = logging.getLogger(__name__)


def write_vectors(path: Path, rows: int, width: int, seed: int = 0) -> None:
    """(rows, width) float32 in a `.npy` file: 2,000 clusters of unequal size, of unequal spread, unit vectors."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2000, width), np.float32)
    share = rng.pareto(1.5, len(centres)) + 0.1
    spread = rng.uniform(0.3, 1.2, len(centres)).astype(np.float32)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (rows, width))
    for start in range(0, rows, 65_536):
        cluster = rng.choice(len(centres), min(65_536, rows - start), p=share / share.sum())
        block = centres[cluster] + spread[cluster, None] * rng.standard_normal((len(cluster), width), np.float32)
        x[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    x.flush()


def ours(path: Path, sizes: tuple[int, ...], iterations: int, threads: int) -> dict[str, float]:
    """Seconds of fit, encode and floor, peak, error and the sizes of the samples a level was fitted on."""
    x = np.load(path, mmap_mode="r")
    with _threads(threads):
        quantizer = ResidualKMeans(sizes, iterations=iterations)
        fit, fit_cpu = _timed(lambda: quantizer.fit(x))
        seconds = np.zeros(4)
        codes = np.empty((len(x), len(sizes)), np.int32)
        for start, stop in pairwise(np.linspace(0, len(x), _SLICES + 1).astype(int)):
            part, out = x[start:stop], codes[start:stop]
            seconds[:2] += _timed(lambda part=part: multiply(part, quantizer.codebooks))
            seconds[2:] += _timed(lambda part=part, out=out: np.copyto(out, quantizer.encode(part)))
        peak = peak_bytes() / 2**20
    sample = x[:: max(1, len(x) // 50_000)]
    error = reconstruction_error(sample, quantizer.decode(codes[:: max(1, len(x) // 50_000)]))
    names = ("floor", "floor_cpu", "encode", "encode_cpu")
    figures = {"fit": fit, "fit_cpu": fit_cpu, **dict(zip(names, map(float, seconds), strict=True))}
    return {**figures, "peak_mb": peak, "error": error}


def multiply(x: NDArray[np.float32], codebooks: list[NDArray[np.float32]]) -> None:
    """The products alone, in the blocks of `quantizers.nearest`."""

    scratch = local()

    def work(start: int, stop: int) -> None:
        if not hasattr(scratch, "kept"):
            scratch.kept = np.empty(1024 * max(map(len, codebooks)), np.float32)
        for codebook in codebooks:
            block = min(1024, max(256, (1 << 19) // len(codebook)))
            score = scratch.kept[: block * len(codebook)].reshape(block, -1)
            for first in range(start, stop, block):
                part = x[first : min(first + block, stop)]
                np.matmul(part, codebook.T, out=score[: len(part)])

    for _ in in_blocks(work, len(x), _ROWS):
        pass


def theirs(path: Path, sizes: tuple[int, ...], iterations: int, threads: int) -> dict[str, float]:
    """Seconds of fit and encode, peak and error of faiss on the samples that `ResidualKMeans` draws."""
    x = np.load(path, mmap_mode="r")
    drawing = ResidualKMeans(sizes)
    with _threads(threads):
        levels: list[Any] = []

        def fit() -> None:
            residual = drawing._sample(x)
            for level, size in enumerate(sizes):
                drawn = drawing._drawn(residual, size, level)
                kmeans = faiss.Kmeans(
                    drawn.shape[1], size, niter=iterations, seed=level, max_points_per_centroid=len(drawn)
                )
                kmeans.train(drawn)
                levels.append(kmeans)
                _subtract(residual, kmeans)

        fit_seconds, fit_cpu = _timed(fit)
        codes = np.empty((len(x), len(sizes)), np.int64)

        def encode() -> None:
            for start in range(0, len(x), 1 << 16):
                residual = np.array(x[start : start + (1 << 16)])
                for level, kmeans in enumerate(levels):
                    codes[start : start + len(residual), level] = _subtract(residual, kmeans)

        encode_seconds, encode_cpu = _timed(encode)
        peak = peak_bytes() / 2**20
    every = max(1, len(x) // 50_000)
    decoded = sum(kmeans.centroids[codes[::every, level]] for level, kmeans in enumerate(levels))
    figures = {"fit": fit_seconds, "fit_cpu": fit_cpu, "encode": encode_seconds, "encode_cpu": encode_cpu}
    return {**figures, "peak_mb": peak, "error": reconstruction_error(x[::every], decoded)}


def _subtract(residual: NDArray[np.float32], kmeans: Any) -> NDArray[np.int64]:
    """Search and take the centroids away in place, in blocks that keep memory flat."""
    codes = np.empty(len(residual), np.int64)
    for start in range(0, len(residual), 1 << 16):
        part = residual[start : start + (1 << 16)]
        code = kmeans.index.search(part, 1)[1][:, 0]
        part -= kmeans.centroids[code]
        codes[start : start + len(part)] = code
    return codes


def _threads(threads: int) -> threadpool_limits:
    faiss.omp_set_num_threads(threads)
    return threadpool_limits(threads)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = perf_counter(), process_time()
    work()
    return perf_counter() - wall, process_time() - cpu


def main() -> None:
    """Parse the command line, run both shapes and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=faiss.omp_get_max_threads())
    parser.add_argument("--alone", action="store_true", help="leave faiss out, which copies what it searches")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    share, fit, peak = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.npy"
        write_vectors(path, options.rows, options.width)
        log.info(
            "%d x %d vectors (%.0f MB), %d iterations, %d threads",
            options.rows, options.width, options.rows * options.width / 2**18, options.iterations, options.threads,
        )  # fmt: skip
        for sizes in SHAPES:
            found = {}
            for run in (ours,) if options.alone else (ours, theirs):
                with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                    figures = pool.submit(run, path, sizes, options.iterations, options.threads).result()
                found[run.__name__] = figures
                told = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
                log.info("%s %s: %s", "/".join(map(str, sizes)), run.__name__, told)
            of = found["ours"]
            share.append(of["floor"] / of["encode"])
            peak.append(of["peak_mb"])
            told = f"encode {share[-1]:.2f} of the floor's speed (CPU {of['floor_cpu'] / of['encode_cpu']:.2f})"
            if "theirs" in found:
                beside = found["theirs"]
                fit.append(of["fit"] / beside["fit"])
                told += f", fit {fit[-1]:.2f} of faiss's time (CPU {of['fit_cpu'] / beside['fit_cpu']:.2f})"
            log.info("%s: %s", "/".join(map(str, sizes)), told)
    worst = {"encode_vs_floor": round(min(share), 3), "fit_vs_faiss": round(max(fit), 3) if fit else None}
    print(json.dumps({**worst, "peak_mb": round(max(peak))}))


if __name__ == "__main__":
    main()
