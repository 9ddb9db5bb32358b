"""Semantic IDs as keys that sort as they do: all codes of an ID in one number, the first code in the highest bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[Any]
"""(N,) int64, or bytes where the codes of an ID need more than 62 bits."""

WIDEST: Final = 62
"""Bits of the widest key that is a number; of the 64, one is the sign, and one is free for the power of two above."""

_BLOCK: Final = 2**15
_CODES: Final = ((8, np.uint8), (15, np.int16), (31, np.int32), (63, np.int64))


@dataclass(frozen=True)
class SortKeys:
    """How the codes of L levels become keys and keys become codes again.

    Attributes:
        bits: L numbers; how many bits a code of each level takes.
    """

    bits: tuple[int, ...]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> SortKeys:
        """Keys for codes of level l below `sizes[l]`."""
        return cls(tuple((int(size) - 1).bit_length() for size in sizes))

    @property
    def total(self) -> int:
        """Bits of a key."""
        return sum(self.bits)

    def keys(self, codes: NDArray[np.integer]) -> Keys:
        """(N, L) codes as (N,) keys: a < b of the keys is a < b of the rows, read from the left."""
        if self.total > WIDEST:
            wide = np.ascontiguousarray(codes, ">u8")  # big-endian, so that bytes sort as numbers do
            return wide.view(f"S{8 * len(self.bits)}")[:, 0]
        if codes.dtype == np.uint64:
            codes = codes.astype(np.int64)  # NumPy has no common integer for both
        keys = np.zeros(len(codes), np.int64)
        for level, bits in enumerate(self.bits):
            keys <<= bits
            np.bitwise_or(keys, codes[:, level], out=keys, casting="unsafe")
        return keys

    def codes(self, keys: Keys, level: int, places: NDArray[np.integer]) -> NDArray[np.integer]:
        """(n,) codes of one level of the keys at some places (n,), as small integers as PyTorch has for the level."""
        kind = next(kind for most, kind in _CODES if self.bits[level] <= most)
        codes: NDArray[np.integer] = np.empty(len(places), kind)
        for start in range(0, len(places), _BLOCK):
            block = slice(start, start + _BLOCK)
            codes[block] = self._codes(keys[places[block]], level)
        return codes

    def firsts(self, keys: Keys) -> Iterator[NDArray[np.bool_]]:
        """For sorted keys and each depth 1..L: (N,) whether an item is the first of its prefix of so many codes."""
        first = np.ones(len(keys), bool)
        if self.total > WIDEST:
            first[1:] = False
            for level in range(len(self.bits)):
                code = self._codes(keys, level)
                first[1:] |= code[1:] != code[:-1]
                yield first
            return
        changed = keys[1:] ^ keys[:-1]
        for level in range(len(self.bits)):
            np.greater_equal(changed, 2 ** sum(self.bits[level + 1 :]), out=first[1:])
            yield first

    def _codes(self, keys: Keys, level: int) -> NDArray[np.int64]:
        """(N,) codes of one level."""
        if self.total > WIDEST:
            return keys.view(">u8").reshape(len(keys), len(self.bits))[:, level].astype(np.int64)
        codes = keys >> sum(self.bits[level + 1 :])
        codes &= 2 ** self.bits[level] - 1
        return codes
