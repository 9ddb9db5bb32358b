"""How well a model in training finds what was bought, on validation searches."""

from __future__ import annotations

import numpy as np

from onesearch.corpus import Requests
from onesearch.retriever import BEAMS, Retriever


def validation(retriever: Retriever, requests: Requests, beams: int = BEAMS) -> dict[str, float]:
    """How well the target of held-out searches is found, to compare settings without looking at the test searches."""
    items, _ = retriever.rank(requests, min(50, beams), beams)
    found = items == requests.target[:, None]
    rank = np.where(found.any(1), found.argmax(1), np.inf)
    return {
        "valid_mrr@10": float(np.where(rank < 10, 1 / (1 + rank), 0).mean()),
        "valid_recall@10": float((rank < 10).mean()),
        "valid_recall@50": float((rank < 50).mean()),
    }
