"""How well codes use their space and tell items apart.

CUR and ICR are those of OneSearch (https://arxiv.org/abs/2509.03236): the share of a codebook (or of the combinations
of the first codebooks) in use, and the share of items whose codes are theirs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Collisions:
    """How N items share S code sequences.

    Attributes:
        sequences: S, the distinct sequences.
        shared_sequences: those of two items or more.
        items_sharing: items in them.
        largest: items in the fullest one.
    """

    sequences: int
    shared_sequences: int
    items_sharing: int
    largest: int


def codebook_usage(codes: NDArray[np.integer], level_sizes: Sequence[int]) -> NDArray[np.float64]:
    """(N, L) codes -> (L,) share of each level's codes in use.

    >>> codebook_usage(np.array([[0, 1], [1, 1], [1, 1]]), (2, 4)).tolist()
    [1.0, 0.25]
    """
    _check(codes, level_sizes)
    return np.array([len(np.unique(codes[:, level])) / size for level, size in enumerate(level_sizes)])


def prefix_usage(codes: NDArray[np.integer], level_sizes: Sequence[int]) -> NDArray[np.float64]:
    """(N, L) codes -> (L,) CUR_L1, CUR_L1xL2, ...: the share of all prefixes of 1, 2, ... levels in use.

    >>> prefix_usage(np.array([[0, 1], [1, 1], [1, 1]]), (2, 4)).tolist()
    [1.0, 0.25]
    """
    _check(codes, level_sizes)
    used = prefix_ids(codes).max(axis=0, initial=-1) + 1
    return used / np.cumprod(np.array(level_sizes, np.float64))


def independent_coding_rate(codes: NDArray[np.integer]) -> float:
    """(N, L) codes -> ICR, the share of items whose code sequence is theirs alone.

    >>> independent_coding_rate(np.array([[0, 1], [1, 1], [1, 1], [1, 0]]))
    0.5
    """
    return float((_group_sizes(codes) == 1).sum() / max(len(codes), 1))


def collisions(codes: NDArray[np.integer]) -> Collisions:
    """(N, L) codes -> how many of them are shared."""
    sizes = _group_sizes(codes)
    shared = sizes[sizes > 1]
    return Collisions(len(sizes), len(shared), int(shared.sum()), int(sizes.max(initial=0)))


def level_entropy(codes: NDArray[np.integer], level_sizes: Sequence[int]) -> NDArray[np.float64]:
    """(N, L) codes -> (L,) entropy of each level in bits, at most `log2` of its size (all codes equally used)."""
    _check(codes, level_sizes)
    entropy = np.zeros(len(level_sizes))
    for level, size in enumerate(level_sizes):
        count = np.bincount(codes[:, level], minlength=size)
        share = count[count > 0] / max(len(codes), 1)
        entropy[level] = -(share * np.log2(share)).sum() + 0.0
    return entropy


def reconstruction_error(x: NDArray[np.floating], decoded: NDArray[np.floating]) -> float:
    """(N, D) vectors and (N, D) what their codes say -> mean squared distance over mean squared length about the mean.

    0 is perfect; 1 is what answering with the mean vector gives.
    """
    if x.shape != decoded.shape:
        raise ValueError(f"vectors of shape {x.shape} and {decoded.shape} cannot be compared")
    lost, whole = 0.0, 0.0
    mean = x.mean(axis=0, dtype=np.float64)
    for start in range(0, len(x), 16_384):
        block = np.asarray(x[start : start + 16_384], np.float64)
        lost += float(np.square(block - decoded[start : start + 16_384]).sum())
        whole += float(np.square(block - mean).sum())
    return lost / whole if whole > 0 else float(lost > 0)


def prefix_ids(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N, L) codes -> (N, L) dense numbers of each item's prefix of 1, 2, ... L codes, in the order of the prefixes.

    >>> prefix_ids(np.array([[5, 1], [2, 9], [5, 0]])).tolist()
    [[1, 2], [0, 0], [1, 1]]
    """
    ids = np.zeros(codes.shape, np.int64)
    parent = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        code = codes[:, level].astype(np.int64)
        key = parent * (int(code.max(initial=0)) + 1) + code
        parent = np.unique(key, return_inverse=True)[1]
        ids[:, level] = parent
    return ids


def _group_sizes(codes: NDArray[np.integer]) -> NDArray[np.int64]:
    """(S,) how many items have each distinct code sequence."""
    return np.bincount(prefix_ids(codes)[:, -1]) if len(codes) else np.zeros(0, np.int64)


def _check(codes: NDArray[np.integer], level_sizes: Sequence[int]) -> None:
    if codes.ndim != 2 or codes.shape[1] != len(level_sizes):
        raise ValueError(f"codes of shape {codes.shape} do not fit {len(level_sizes)} levels")
    if len(codes) and ((codes < 0).any() or (codes.max(axis=0) >= np.array(level_sizes)).any()):
        raise ValueError(f"a code is outside its level: codes up to {codes.max(axis=0).tolist()}, sizes {level_sizes}")
