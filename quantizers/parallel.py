"""Blocks of rows on every thread, to the bit what one thread gives.

Rows are cut into blocks by their number alone, each block is worked on by one thread with a linear algebra library that
is held to one thread meanwhile, and results come back in the order of the blocks. So neither the cuts nor the order of
any sum depends on how many threads there are. They are as many as OpenMP may use (`OMP_NUM_THREADS`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import faiss
from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")


def in_blocks(work: Callable[[int, int], Result], rows: int, block: int) -> Iterator[Result]:
    """`work(start, stop)` for each block of at most `block` of the rows, in order; few results wait at any time.

    >>> list(in_blocks(lambda start, stop: (start, stop), rows=5, block=2))
    [(0, 2), (2, 4), (4, 5)]
    """
    cuts = [(start, min(start + block, rows)) for start in range(0, rows, block)]
    threads = min(faiss.omp_get_max_threads(), len(cuts))
    with _one_blas_thread():
        if threads < 2:
            for start, stop in cuts:
                yield work(start, stop)
            return
        with ThreadPoolExecutor(threads, initializer=_one_openmp_thread_here) as pool:
            waiting: deque[Future[Result]] = deque()
            try:
                for start, stop in cuts:
                    waiting.append(pool.submit(work, start, stop))
                    if len(waiting) > 2 * threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


@contextmanager
def one_openmp_thread() -> Iterator[None]:
    """Hold faiss to one thread: with another number it sums in another order."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        with _one_blas_thread():
            yield
    finally:
        faiss.omp_set_num_threads(threads)


def _one_openmp_thread_here() -> None:
    """OpenMP counts threads for each thread by itself, a linear algebra library may ask it, and several packages bring
    an OpenMP of their own: which of them is asked depends on what was imported first."""
    ThreadpoolController().select(user_api="openmp").limit(limits=1)


_lock = Lock()
_users = 0
_limit: Any = None


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """The number of threads is one for the whole process: who comes first sets it, who leaves last restores it."""
    global _users, _limit
    with _lock:
        if _users == 0:
            # looked for anew, since a library may have been loaded meanwhile
            _limit = ThreadpoolController().limit(limits=1, user_api="blas")
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _limit.restore_original_limits()
