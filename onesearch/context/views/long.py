"""The whole past of the user, thousands of events, as a few vectors that the model turns into soft tokens.

Both ways read sums that are kept per user (`RunningSums`), so their cost does not depend on the length of the past.

- `qformer`, OneSearch (2509.03236): for clicks, orders and query-relevant events, per level the sum of the centroids of
  the events' codes. Centroids are those of `Centroids`, in the relevance space; a level adds what it adds to the level
  above. Ours: the mean instead of the sum, with the log of the count beside it, since a sum says hardly more than how
  long a past is. Relevant events are the history slots.
- `lrea`, LREA (2503.02542): the sums that low-rank target attention takes over the past, K~ = A_k^T K W_k with A_k of
  (events, r). Pasts differ in length, so A_k is a function of the place, constant within buckets that double in size
  (our completion). Then A_k^T K needs nothing but the mean of the items' vectors in each bucket.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.context.views.centroids import Centroids
from onesearch.context.views.past import Past
from onesearch.context.views.running_sums import BUCKETS, RunningSums
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.corpus.split import target_kind


class CentroidSums:
    """`long_means` (Q, 3 L, D) float32 and `long_counts` (Q, 3 L) float32, log(1 + events): L levels of clicks and
    carts, of events of the strongest kind, and of the history slots."""

    def __init__(self, corpus: Corpus, centroids: Centroids, tokens: int) -> None:
        self.positions, self._levels = tokens, len(centroids.means)
        self._table, self._rows = centroids.residuals()
        strongest = corpus.kind == target_kind(corpus)
        weaker = ~strongest & (corpus.kind > EVENT_KINDS.index("impression"))
        self._sums = [RunningSums(Past(corpus, kind), self._table, self._rows) for kind in (weaker, strongest)]

    def sizes(self) -> dict[str, Any]:
        places = (len(self._sums) + 1) * self._levels
        return {"way": "qformer", "tokens": self.positions, "places": places, "known": self._table.shape[1]}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        held = slots.item >= 0
        weighed = self._table.numpy()[self._rows[slots.item]] * held[..., None, None]
        found = [sums.totals(requests) for sums in self._sums] + [(weighed.sum(1), held.sum(1))]
        counts = np.stack([count for _, count in found], 1)
        means = np.stack([total for total, _ in found], 1) / np.maximum(counts, 1)[..., None, None]
        return {
            "long_means": means.reshape(len(requests), -1, self._table.shape[1]).astype(np.float32),
            "long_counts": np.repeat(np.log1p(counts), self._levels, axis=1).astype(np.float32),
        }

    def save(self, folder: Path) -> None:
        """Nothing: it is made of the log and the semantic IDs."""


class RecencySums:
    """`long_means` (Q, BUCKETS, D) float32 and `long_counts` (Q, BUCKETS) float32, log(1 + events), the latest first;
    of clicks, carts and purchases together."""

    def __init__(self, corpus: Corpus, vectors: NDArray[np.float32], tokens: int) -> None:
        """
        Args:
            vectors: (N, D) of the items. tokens: the rank, of which each becomes a soft token; one more is what the
                query attends to.
        """
        self.positions, self._tokens, self._known = tokens + 1, tokens, vectors.shape[1]
        chosen = Past(corpus, corpus.kind > EVENT_KINDS.index("impression"))
        self._sums = RunningSums(chosen, torch.from_numpy(vectors), np.arange(len(vectors))[:, None])

    def sizes(self) -> dict[str, Any]:
        return {"way": "lrea", "tokens": self._tokens, "places": BUCKETS, "known": self._known}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        sums, counts = self._sums.buckets(requests)
        means = sums[:, :, 0] / np.maximum(counts, 1)[..., None]
        return {"long_means": means.astype(np.float32), "long_counts": np.log1p(counts).astype(np.float32)}

    def save(self, folder: Path) -> None:
        """Nothing: it is made of the log."""
