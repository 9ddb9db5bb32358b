"""Codebooks one after the other: what the code of one level leaves over is what the next one codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantizers.folder import Tensors
from quantizers.nearest import nearest


def encode_residuals(x: NDArray[np.float32], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.int32]:
    """(N, D) vectors, L codebooks (K_l, D) -> (N, L) codes, level by level the nearest one, ties to the lowest code.

    >>> books = [np.array([[0.0], [8.0]], np.float32), np.array([[-1.0], [1.0]], np.float32)]
    >>> encode_residuals(np.array([[9.0], [7.0], [0.0]], np.float32), books).tolist()
    [[1, 1], [1, 0], [0, 0]]
    """
    codes = np.empty((len(x), len(codebooks)), np.int32)
    residual = x
    for level, codebook in enumerate(codebooks):
        codes[:, level] = nearest(residual, codebook)
        residual = residual - codebook[codes[:, level]]
    return codes


def sum_codes(codes: NDArray[np.integer], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """(N, l) codes of the first l <= L levels -> (N, D) the sum of what they stand for.

    Raises:
        ValueError: too many levels, or a code that is outside its level (its row is named).
    """
    check_codes(codes, [len(codebook) for codebook in codebooks])
    x = np.zeros((len(codes), codebooks[0].shape[1]), np.float32)
    for level in range(codes.shape[1]):
        x += codebooks[level][codes[:, level]]
    return x


def check_codes(codes: NDArray[np.integer], level_sizes: Sequence[int]) -> None:
    """Raises a ValueError unless `codes` is (N, l), 1 <= l <= L, and every code is inside its level."""
    if codes.ndim != 2 or not 1 <= codes.shape[1] <= len(level_sizes):
        raise ValueError(f"expected codes of shape (N, 1..{len(level_sizes)}), not {codes.shape}")
    for level in range(codes.shape[1]):
        code, size = codes[:, level], level_sizes[level]
        wrong = np.flatnonzero((code < 0) | (code >= size))
        if len(wrong):
            raise ValueError(f"row {wrong[0]}: code {code[wrong[0]]} of level {level} is not in 0..{size - 1}")


def find_codebooks(tensors: Tensors, level_sizes: Sequence[int], width: int) -> list[NDArray[np.float32]]:
    """The codebooks of a saved quantizer, (K_l, width) each.

    Raises:
        KeyError: one is missing. ValueError: one is of another shape, or not finite.
    """
    codebooks = [tensors[f"codebook_{level}"] for level in range(len(level_sizes))]
    for level, (codebook, size) in enumerate(zip(codebooks, level_sizes, strict=True)):
        if codebook.shape != (size, width) or not np.isfinite(codebook).all():
            raise ValueError(
                f"codebook {level} has the shape {codebook.shape} or is not finite, expected {size, width}"
            )
    return codebooks


def name_codebooks(codebooks: Sequence[NDArray[np.float32]]) -> Tensors:
    """The codebooks as tensors to be saved."""
    return {f"codebook_{level}": codebook for level, codebook in enumerate(codebooks)}


def find_used_sizes(config: dict[str, Any], level_sizes: Sequence[int]) -> list[int]:
    """How many codes each level of a saved quantizer has.

    Raises:
        KeyError: they are not given. ValueError: a level has more than its size.
    """
    used = [int(size) for size in config["used_sizes"]]
    if len(used) != len(level_sizes) or any(not 1 <= u <= size for u, size in zip(used, level_sizes, strict=True)):
        raise ValueError(f"used_sizes {used} do not fit the level_sizes {tuple(level_sizes)}")
    return used
