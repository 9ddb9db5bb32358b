"""Rankings without what the user has seen: many papers leave it out of the candidates, many do not.

An item of the history cannot be right where nobody buys a thing twice, so leaving it out lifts every system a little.
Where a log has no repeated purchases both ways are reported.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eval.baselines import System
from eval.baselines.purchases import slices
from onesearch.corpus import Corpus, Requests


def without_seen(
    system: System, corpus: Corpus, requests: Requests, items: NDArray[np.int32], k: int
) -> NDArray[np.int32]:
    """(Q, k) the ranking of a system without the items of each request's history.

    Args:
        items: (Q, K) its ranking, K >= k. Where a history is longer than K - k, the system is asked for more.
    """
    length = requests.history_end - requests.history_start
    kept = _without(items, corpus, requests)[:, :k]
    long = np.flatnonzero(length > items.shape[1] - k)
    if len(long):
        asked = requests.take(long)
        more, _ = system.rank(asked, min(k + int(length.max()), len(corpus.items)))
        kept[long] = _without(more, corpus, asked)[:, :k]
    return kept


def _without(items: NDArray[np.int32], corpus: Corpus, requests: Requests) -> NDArray[np.int32]:
    """The rows of `items` (Q, K) without those of the history, -1 at the end instead."""
    total = len(corpus.items)
    row, event = slices(requests.history_start, requests.history_end)
    seen = row * np.int64(total) + corpus.item[event]
    asked = np.arange(len(items))[:, None] * np.int64(total) + items
    gone = np.isin(asked, seen) | (items < 0)
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, np.int32(-1), items), order, axis=1)
