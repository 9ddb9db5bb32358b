import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from quantizers.parallel import in_blocks


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order_and_the_linear_algebra_library_gets_its_threads_back(threads: int) -> None:
    with threadpool_limits(limits=threads):
        before = blas_threads()
        seen: list[int] = []

        def work(start: int, stop: int) -> list[int]:
            seen.extend(blas_threads())
            return list(range(start, stop))

        assert [row for rows in in_blocks(work, 1000, 7) for row in rows] == list(range(1000))
        assert set(seen) == {1}
        assert blas_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_in_the_order_of_the_rows_is_raised(threads: int) -> None:
    def work(start: int, stop: int) -> None:
        if start >= 50:
            raise ValueError(f"row {start}")

    with threadpool_limits(limits=threads):
        before = blas_threads()
        with pytest.raises(ValueError, match="row 50"):
            list(in_blocks(work, 100, 10))
        assert blas_threads() == before


def test_nothing_to_do() -> None:
    assert list(in_blocks(lambda start, stop: np.zeros(stop - start), 0, 5)) == []
