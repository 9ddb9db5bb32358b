from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from benchmarks.memory import peak_bytes


def test_a_process_does_not_begin_with_the_peak_of_the_one_above_it() -> None:
    held = np.ones(100_000_000, np.float64)
    assert peak_bytes() > held.nbytes
    del held
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert pool.submit(peak_bytes).result() < 600e6
