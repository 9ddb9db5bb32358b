"""The user as two semantic IDs, of what was chosen lately and of what was bought over a longer time.

OneSearch (2509.03236): SID_short = ceil(sum_i lam_i SID_{s_i}) with lam_i = exp(sqrt i) / sum_j exp(sqrt j), i = 1 the
oldest of the recent clicks, and SID_long the same over orders. That is arithmetic on code indices, and what lies
between code 12 and code 40 has nothing to do with either: kept as `paper`. Ours, `nearest`: the same weights, but of
the items' vectors, and the codes that the run's quantizer gives the mean. Where no quantizer of vectors of texts is at
hand it is, level by level, the code whose mean vector is nearest (`Centroids`). A level of ranks that makes semantic
IDs unique means nothing for a mean, so the quantizer's codes end before it.

What counts as lately is our choice: the last `SHORT` clicks, carts and purchases; and the last `LONG` events of the
strongest kind, since exp(sqrt i) hardly weighs what lies further back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from onesearch.context.history import HistorySlots
from onesearch.context.views.past import Past
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import target_kind

SHORT: Final = 10
LONG: Final = 256

ToCodes = Callable[[NDArray[np.floating]], NDArray[np.integer]]
"""(n, D) averages -> (n, L) codes."""


class Uid:
    """`uid_codes`: (Q, 2, L) int64, of the short and the long past; -1 where there is none."""

    def __init__(self, corpus: Corpus, table: NDArray[np.floating], to_codes: ToCodes) -> None:
        """
        Args:
            table: (N, D) what is averaged of the items: vectors, or codes as float64.
        """
        self._table, self._to_codes = table, to_codes
        self._corpus = corpus
        chosen, strongest = corpus.kind > EVENT_KINDS.index("impression"), corpus.kind == target_kind(corpus)
        self._pasts = ((Past(corpus, chosen), SHORT), (Past(corpus, strongest), LONG))
        self._levels = to_codes(np.zeros((1, table.shape[1]), table.dtype)).shape[1]
        self.positions = len(self._pasts) * self._levels

    def sizes(self) -> dict[str, Any]:
        return {"levels": self._levels}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        found = [self._codes(past.latest(requests, most)) for past, most in self._pasts]
        return {"uid_codes": np.stack(found, 1)}

    def save(self, folder: Path) -> None:
        """Nothing: it is made of the run."""

    def _codes(self, event: NDArray[np.int64]) -> NDArray[np.int64]:
        """(Q, n) events, the latest first -> (Q, L) codes."""
        row, place = np.nonzero(event >= 0)
        count = (event >= 0).sum(1)
        weight = recency_weights(count, event.shape[1])[row, place]
        edges = np.concatenate([[0], np.cumsum(count)])
        item = self._corpus.item[event[row, place]]
        shares = sparse.csr_matrix((weight, item, edges), (len(event), len(self._table)))
        codes = self._to_codes((shares @ self._table).astype(self._table.dtype)).astype(np.int64)
        codes[count == 0] = -1
        return codes


def recency_weights(count: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """(Q, most) exp(sqrt i) scaled to sum 1; column 0 is i = count, the latest, and 0 follows i = 1.

    >>> recency_weights(np.array([2]), 3).round(3).tolist()
    [[0.602, 0.398, 0.0]]
    """
    rank = count[:, None] - np.arange(most)
    weight = np.where(rank > 0, np.exp(np.sqrt(np.maximum(rank, 0)) - np.sqrt(count)[:, None]), 0)
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-300)


def rounded_up(mean: NDArray[np.floating]) -> NDArray[np.int64]:
    """The paper's ceil; a mean of equal codes is that code, whatever floating point makes of it."""
    return np.ceil(mean - 1e-9).astype(np.int64)
