"""How well vectors find, on held-out events, what was bought: after a query, and in one visit with another item."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.pairs import Ints

CUTS: Final = (10, 50)
_ELEMENTS: Final = 1 << 24


def ranks(
    asked: NDArray[np.float32],
    items: NDArray[np.float32],
    text: Ints,
    popularity: NDArray[np.integer],
    target: Ints,
    left_out: Ints | None = None,
) -> Ints:
    """(Q,) rank of each target from 0 among all items by inner product.

    Items of one text have one vector: among them the more popular come first, then the lower index. A text that is
    exactly as near as the target's counts as before it: a vector of zeros finds nothing.

    Args:
        asked: (Q, D). items: (N, D). text: (N,) number of each item's text. popularity: (N,).
        target: (Q,) items.
        left_out: (Q,) a text that is no answer (the item's own, where neighbours are asked for).
    """
    _, first, size = np.unique(text, return_index=True, return_counts=True)
    distinct = np.ascontiguousarray(items[first])
    order = np.lexsort((np.arange(len(text)), -popularity, text))
    within = np.empty(len(text), np.int64)
    within[order] = np.arange(len(text)) - (np.cumsum(size) - size)[text[order]]
    found = np.empty(len(asked), np.int64)
    block = max(1, _ELEMENTS // max(1, len(distinct)))
    for start in range(0, len(asked), block):
        here = slice(start, start + block)
        right = text[target[here]]
        scores = asked[here] @ distinct.T
        before = scores >= scores[np.arange(len(right)), right][:, None]
        before[np.arange(len(right)), right] = False
        if left_out is not None:
            before[np.arange(len(right)), left_out[here]] = False
        found[here] = before @ size + within[target[here]]
    return found


def recalls(found: Ints) -> dict[int, float]:
    """Share of (Q,) ranks below each of `CUTS`."""
    return {cut: float((found < cut).mean()) for cut in CUTS}
