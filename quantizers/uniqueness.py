"""A last level that makes code sequences unique: items that share one are numbered 0, 1, 2, ... in a given order.

The number is a rank, not a cluster: with items ordered by falling popularity, a model learns what 0 means across the
whole catalogue. Where more items share a sequence than the last level has numbers, those late in the order move to
another sequence under the same first L - 1 codes: to the one with room whose last code is nearest in number (the lower
of two). Only they change a code, and only their finest one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantizers.metrics import prefix_ids


def append_rank_level(codes: NDArray[np.integer], order: NDArray[np.generic], size: int) -> NDArray[np.int32]:
    """(N, L) codes to (N, L + 1) unique ones.

    Args:
        codes: (N, L); the last codes in use are those from 0 to the highest there is.
        order: (N,) a sort key, the smaller first (such as `-counts`); equal keys go by row.
        size: how many items may share a sequence: the size of the new level.

    Raises:
        ValueError: the shapes do not fit, or some first L - 1 codes have more items than room below them.

    >>> append_rank_level(np.array([[3, 1], [3, 1], [3, 0]]), np.array([9, 2, 5]), size=4).tolist()
    [[3, 1, 1], [3, 1, 0], [3, 0, 0]]
    """
    if codes.ndim != 2 or codes.shape[1] < 1 or order.shape != (len(codes),) or size < 1:
        raise ValueError(
            f"expected codes (N, L), order (N,) and a positive size, not {codes.shape}, {order.shape}, {size}"
        )
    result = np.concatenate([codes, np.zeros((len(codes), 1))], axis=1, dtype=np.int32, casting="unsafe")
    if not len(codes):
        return result
    sequence = prefix_ids(codes)[:, -1]
    in_order, rank = _ranks(sequence, order)
    spilled = in_order[rank >= size]
    result[in_order, -1] = rank
    if len(spilled):
        result[spilled, -2:] = _free_places(codes, sequence, spilled, size)
    return result


def _ranks(sequence: NDArray[np.int64], order: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the items by sequence and order, and (N,) the place of each of these in its sequence."""
    in_order = np.lexsort((np.arange(len(order)), order, sequence))
    starts = np.flatnonzero(np.diff(sequence[in_order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    return in_order, np.arange(len(order)) - np.repeat(starts, lengths)


def _free_places(
    codes: NDArray[np.integer], sequence: NDArray[np.int64], spilled: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """(M, 2) last code and rank for the M spilled items, which come grouped by sequence, sequences ascending.

    The loop is over overfull sequences, of which there are few; within one everything is an array of last codes.
    """
    last_codes = int(codes[:, -1].max()) + 1
    parent = prefix_ids(codes[:, :-1])[:, -1] if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
    places = np.empty((len(spilled), 2), np.int64)
    starts = np.flatnonzero(np.diff(sequence[spilled], prepend=-1))
    family, taken = -1, np.zeros(0, np.int64)
    for start, end in zip(starts, np.append(starts[1:], len(spilled)), strict=True):
        item = spilled[start]
        if parent[item] != family:
            family = int(parent[item])
            members = codes[parent == family, -1]
            taken = np.minimum(np.bincount(members, minlength=last_codes), size)
            if len(members) > size * last_codes:
                raise ValueError(
                    f"{len(members)} items share the codes {codes[item, :-1].tolist()}, but {last_codes} last codes of "
                    f"{size} have no room for them: use a size of at least {-(-len(members) // last_codes)}"
                )
        by_distance = np.argsort(np.abs(np.arange(last_codes) - codes[item, -1]), kind="stable")
        room = size - taken[by_distance]
        chosen = np.repeat(by_distance, room)[: end - start]
        first_use = np.concatenate([[0], np.flatnonzero(np.diff(chosen)) + 1])
        within = np.arange(len(chosen)) - np.repeat(first_use, np.diff(first_use, append=len(chosen)))
        places[start:end, 0] = chosen
        places[start:end, 1] = taken[chosen] + within
        np.add.at(taken, chosen, 1)
    return places
