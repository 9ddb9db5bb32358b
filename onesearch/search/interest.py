"""Retrieval by an interest vector: the items whose vectors have the largest inner product with it, through faiss.

The index is exact and holds the items on sale. A filter is handed to faiss, so that it costs no result: where fewer
items are allowed than were asked for, all of them come out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Wanted:
    """What B requests are looking for.

    Attributes:
        vectors: (B, D) interest vectors.
        seen: (B, H) int64 items whose logits get `bonus`, each once, below 0 in empty places; None for none.
    """

    vectors: Tensor
    seen: Tensor | None = None
    bonus: float = 0.0


class InterestIndex:
    """The vectors of the items on sale.

    Args:
        vectors: (n, D) float32 unit vectors.
        items: (n,) int64 the item of each.
        scale: inverse temperature; scores are logits of the interest head, the cosine times it.
        share: what a logit counts beside a log-probability in `fused`.
    """

    def __init__(self, vectors: Tensor, items: Tensor, scale: float, share: float) -> None:
        self.vectors, self.scale, self.share = vectors, scale, share
        self._items = items.cpu().numpy()
        self._row = torch.full((int(items.max()) + 1,), -1, dtype=torch.int64, device=items.device)
        self._row[items] = torch.arange(len(items), device=items.device)
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(np.ascontiguousarray(vectors.cpu().numpy(), np.float32))

    def search(
        self, wanted: Wanted, k: int, masks: Tensor | None = None, row: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The k items with the highest logits.

        Args:
            masks: (R, N) bool over item indices, which items may come out. row: (B,) the mask of each request.

        Returns:
            (B, k) int64 items, best first, -1 where fewer are allowed, and (B, k) float32 logits, -inf there.
        """
        if wanted.seen is None:
            return self._nearest(wanted.vectors, k, masks, row)
        # So many that k are left below them all, whatever those that were seen lose; and those, whatever they gain.
        seen = self._on_sale(wanted.seen)
        near, logit = self._nearest(wanted.vectors, k + seen.shape[1], masks, row)
        logit = logit + wanted.bonus * _among(near, seen)
        seen = seen.masked_fill(_among(seen, near), -1)
        if masks is not None and row is not None:
            seen = seen.masked_fill(~masks[row].gather(1, seen.clamp(min=0)), -1)
        items = torch.cat([near, seen], 1)
        best, place = torch.cat([logit, self.logits(wanted, seen)], 1).sort(dim=1, descending=True, stable=True)
        return items.gather(1, place)[:, :k].masked_fill(best[:, :k] == -torch.inf, -1), best[:, :k]

    def _nearest(self, wanted: Tensor, k: int, masks: Tensor | None, row: Tensor | None) -> tuple[Tensor, Tensor]:
        asked = np.ascontiguousarray(wanted.cpu().numpy(), np.float32)
        most = min(k, len(self._items))
        score, place = np.full((len(asked), k), -np.inf, np.float32), np.full((len(asked), k), -1, np.int64)
        if masks is None or row is None:
            score[:, :most], place[:, :most] = self._index.search(asked, most)
        else:
            which = row.cpu().numpy()
            for number in np.unique(which):
                mine = np.flatnonzero(which == number)
                score[mine, :most], place[mine, :most] = self._filtered(asked[mine], most, masks[int(number)])
        items = np.where(place >= 0, self._items[place.clip(min=0)], -1)
        logits = np.where(place >= 0, score, -np.inf) * np.float32(self.scale)
        device = wanted.device
        return torch.from_numpy(items).to(device), torch.from_numpy(logits.astype(np.float32)).to(device)

    def _filtered(self, asked: NDArray[np.float32], k: int, mask: Tensor) -> tuple[Any, Any]:
        bits = np.packbits(mask.cpu().numpy()[self._items], bitorder="little")
        python: Any = faiss  # its type stubs know the C++ signatures alone
        return self._index.search(asked, k, params=python.SearchParameters(sel=python.IDSelectorBitmap(bits)))

    def logits(self, wanted: Wanted, items: Tensor) -> Tensor:
        """(B, K) logits of items on sale (B, K), -inf where an item is -1."""
        vectors = self.vectors[self._row[items.clamp(min=0)]]
        logit = torch.linalg.vecdot(vectors, wanted.vectors.unsqueeze(1)) * self.scale
        if wanted.seen is not None:
            logit = logit + wanted.bonus * _among(items, wanted.seen)
        return logit.masked_fill(items < 0, -torch.inf)

    def _on_sale(self, items: Tensor) -> Tensor:
        """(B, H) the items, -1 where one is not in the index."""
        known = (items >= 0) & (items < len(self._row))
        known &= self._row[items.clamp(0, len(self._row) - 1)] >= 0
        return items.masked_fill(~known, -1)


def _among(items: Tensor, others: Tensor) -> Tensor:
    """(B, K) whether each of the items (B, K) is one of the others (B, H) of its row."""
    return (items.unsqueeze(2) == others.unsqueeze(1)).any(2) & (items >= 0)
