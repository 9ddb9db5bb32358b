"""Places for new semantic IDs among those that are taken: nobody who is there moves.

The rule, for a table whose last level is a rank: a new item takes the next free rank below its learned codes. Where
these hold as many items as the last level has numbers, it takes the next free rank of the nearest sequence with room
below the same first codes, nearest in the number of the last learned code, the lower of two: the rule by which
`quantizers/uniqueness.py` treats late items at the fit. Earlier rows choose first. A rank that was given away once is
never given again, so the removed items' places count as taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesearch.errors import UserError
from quantizers.metrics import prefix_ids


def place(
    taken: NDArray[np.integer], learned: NDArray[np.integer], size: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Unique semantic IDs for M items beside N that have one.

    Args:
        taken: (N, L + 1) semantic IDs in use, the last code a rank.
        learned: (M, L) codes of the new items.
        size: of the rank level.

    Returns:
        (M, L + 1) semantic IDs, and (M,) whether the item had to take another last learned code.

    Raises:
        UserError: no sequence below the same first codes has room.

    >>> place(np.array([[3, 1, 0], [3, 1, 1]]), np.array([[3, 1], [3, 0], [3, 1]]), size=3)[0].tolist()
    [[3, 1, 2], [3, 0, 0], [3, 0, 1]]
    """
    old, new = len(taken), len(learned)
    every = np.concatenate([taken[:, :-1], learned]).astype(np.int64)
    ids = prefix_ids(every)
    sequence = ids[:, -1]
    parent = ids[:, -2] if ids.shape[1] > 1 else np.zeros(old + new, np.int64)
    _, first = np.unique(sequence, return_index=True)
    free = np.zeros(len(first), np.int64)  # the next rank of every sequence
    np.maximum.at(free, sequence[:old], taken[:, -1] + 1)

    asked = sequence[old:]
    in_order = np.argsort(asked, kind="stable")
    starts = np.flatnonzero(np.diff(asked[in_order], prepend=-1))
    lengths = np.diff(starts, append=new)
    rank = np.empty(new, np.int64)
    rank[in_order] = np.arange(new) - np.repeat(starts, lengths)
    rank += free[asked]
    placed = np.concatenate([learned, rank[:, None]], axis=1)
    moved = rank >= size
    np.maximum.at(free, asked[~moved], rank[~moved] + 1)
    spilled = in_order[moved[in_order]]
    if len(spilled):
        last, family = every[first, -1], parent[first]
        _spill(placed, spilled, asked, free, last, family, size)
    return placed.astype(np.int32), moved


def full_sequences(codes: NDArray[np.integer], size: int) -> tuple[int, int]:
    """(N, L + 1) semantic IDs -> how many sequences of learned codes have no rank left, and how many there are."""
    sequence = prefix_ids(codes)[:, -2] if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
    free = np.zeros(int(sequence.max(initial=-1)) + 1, np.int64)
    np.maximum.at(free, sequence, codes[:, -1].astype(np.int64) + 1)
    return int((free >= size).sum()), len(free)


def _spill(
    placed: NDArray[np.int64],
    spilled: NDArray[np.int64],
    asked: NDArray[np.int64],
    free: NDArray[np.int64],
    last: NDArray[np.int64],
    family: NDArray[np.int64],
    size: int,
) -> None:
    """Set the last two codes of the spilled items, which come grouped by sequence, sequences ascending.

    The loop is over overfull sequences, of which there are few; `free`, `last` and `family` are by sequence.
    """
    last_codes = int(last.max()) + 1
    starts = np.flatnonzero(np.diff(asked[spilled], prepend=-1))
    current, used = -1, np.zeros(0, np.int64)
    for start, end in zip(starts, np.append(starts[1:], len(spilled)), strict=True):
        wanted = asked[spilled[start]]
        if family[wanted] != current:
            current = int(family[wanted])
            used = np.zeros(last_codes, np.int64)
            used[last[family == current]] = np.minimum(free[family == current], size)
        nearest = np.argsort(np.abs(np.arange(last_codes) - last[wanted]), kind="stable")
        chosen = np.repeat(nearest, size - used[nearest])[: end - start]
        if len(chosen) < end - start:
            raise UserError(
                f"no room for {end - start - len(chosen)} new items: every semantic ID below these codes is taken",
                place="last_level",
                value=placed[spilled[start], :-2].tolist(),
                remedy=f"a larger last_level than {size}, and codebooks fitted anew with `onesearch quantize`",
            )
        begins = np.flatnonzero(np.diff(chosen, prepend=-1))
        within = np.arange(len(chosen)) - np.repeat(begins, np.diff(begins, append=len(chosen)))
        placed[spilled[start:end], -2] = chosen
        placed[spilled[start:end], -1] = used[chosen] + within
        np.add.at(used, chosen, 1)
