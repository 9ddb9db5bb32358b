"""Vectors read block by block: their shape, whether they are finite, their mean and their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from quantizers.folder import Tensors

_ROWS: Final = 16_384


def check_shape(x: NDArray[np.floating], width: int | None) -> None:
    """Raises a ValueError unless `x` is (N, width), or (N, D) with something in it where no width is given."""
    if x.ndim != 2 or (width is not None and x.shape[1] != width):
        raise ValueError(f"expected vectors of shape (N, {width or 'D'}), not {x.shape}")
    if width is None and 0 in x.shape:
        raise ValueError(f"there is nothing to fit on: vectors of shape {x.shape}")


def check_finite(block: NDArray[np.float32], rows: Sequence[int] | NDArray[np.int64]) -> None:
    """Raises a ValueError unless all rows are finite, and their sums of squares; `rows` are their numbers."""
    wrong = np.flatnonzero(~np.isfinite(np.einsum("nd,nd->n", block, block)))
    if len(wrong):
        raise ValueError(f"row {rows[wrong[0]]} of the vectors is not finite, or too large for float32")


def finite_blocks(x: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Start and rows of each block as float32, checked to be finite."""
    for start in range(0, len(x), _ROWS):
        block = np.asarray(x[start : start + _ROWS], np.float32)
        check_finite(block, range(start, start + len(block)))
        yield start, block


def codes_of(
    x: NDArray[np.floating], width: int, levels: int, code: Callable[[NDArray[np.float32]], NDArray[np.integer]]
) -> NDArray[np.int32]:
    """(N, D) vectors -> (N, L) codes, block by block by `code`: (n, D) -> (n, L).

    Raises:
        ValueError: a vector of another width, or one that is not finite (its row is named).
    """
    check_shape(x, width)
    codes = np.empty((len(x), levels), np.int32)
    for start, block in finite_blocks(x):
        codes[start : start + len(block)] = code(block)
    return codes


@dataclass(frozen=True)
class Centre:
    """What is taken from vectors before a network sees them: their mean, and their size about it.

    Attributes:
        mean: (D,) float32.
        scale: the root mean square of a number about the mean; 1 where all vectors are equal.
    """

    mean: NDArray[np.float32]
    scale: np.float32

    @classmethod
    def of(cls, x: NDArray[np.floating]) -> Self:
        """That of (N, D) vectors, which may be a memory map.

        Raises:
            ValueError: there is no vector, or one is not finite (its row is named).
        """
        check_shape(x, None)
        total, squares = np.zeros(x.shape[1]), 0.0
        for _, block in finite_blocks(x):
            total += block.sum(axis=0, dtype=np.float64)
        mean = (total / len(x)).astype(np.float32)
        for _, block in finite_blocks(x):
            squares += float(np.square(block - mean, dtype=np.float64).sum())
        scale = np.float32(np.sqrt(squares / x.size))
        rounding = 4 * np.finfo(np.float32).eps * np.abs(mean).max()
        return cls(mean, scale if scale > rounding else np.float32(1))

    @classmethod
    def find(cls, tensors: Tensors, width: int) -> Self:
        """Of a saved quantizer.

        Raises:
            KeyError: it is missing. ValueError: it is of another width, or not finite.
        """
        mean, scale = tensors["mean"], tensors["scale"]
        if mean.shape != (width,) or scale.shape != (1,) or not (np.isfinite(mean).all() and np.isfinite(scale).all()):
            raise ValueError(f"mean and scale do not fit vectors of width {width}")
        return cls(mean, np.float32(scale[0]))

    def tensors(self) -> Tensors:
        """To be saved."""
        return {"mean": self.mean, "scale": np.array([self.scale], np.float32)}

    def remove(self, x: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, D) -> (N, D) centred and scaled."""
        return (np.asarray(x, np.float32) - self.mean) / self.scale

    def restore(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The opposite of `remove`."""
        return x * self.scale + self.mean
