"""How well a model in training finds what was bought, on validation searches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from onesearch.corpus import Requests
from onesearch.retriever import BEAMS, Retriever


def validation(retriever: Retriever, requests: Requests, beams: int = BEAMS) -> dict[str, float]:
    """How well the target of held-out searches is found, to compare settings without looking at the test searches."""
    return summary(ranks(retriever, requests, beams))


def ranks(retriever: Retriever, requests: Requests, beams: int = BEAMS) -> NDArray[np.float64]:
    """(Q,) the place of each target among what is found, infinite where it is not."""
    return places(_lists(retriever, requests, beams), requests)


def ranks_together(retriever: Retriever, requests: Requests, beams: int = BEAMS) -> NDArray[np.float64]:
    """`ranks` of which every process of a training searches for a part; all must call this, and all get all of them."""
    return places(lists_together(retriever, requests, beams), requests)


def lists_together(retriever: Retriever, requests: Requests, beams: int = BEAMS) -> NDArray[np.int64]:
    """(Q, K) what is found, at most 50 items; shared by the processes as in `ranks_together`."""
    if not dist.is_initialized():
        return _lists(retriever, requests, beams)
    own, count = dist.get_rank(), dist.get_world_size()
    parts: list[Any] = [None] * count
    dist.all_gather_object(parts, _lists(retriever, requests.part(slice(own, None, count)), beams))
    found = np.empty((len(requests), parts[0].shape[1]), np.int64)
    for first, part in enumerate(parts):
        found[first::count] = part
    return found


def ndcg(rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q,) NDCG@10 of targets at these places."""
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0)


def summary(rank: NDArray[np.float64]) -> dict[str, float]:
    """Means over searches, by the places (Q,) of their targets."""
    return {
        "valid_mrr@10": _mrr(rank),
        "valid_ndcg@10": float(ndcg(rank).mean()),
        "valid_recall@10": float((rank < 10).mean()),
        "valid_recall@50": float((rank < 50).mean()),
    }


def interest_validation(retriever: Retriever, requests: Requests) -> dict[str, float]:
    """The same of the items nearest to what is wanted."""
    rank = places(retriever.rank(requests, 200, mode="interest")[0], requests)
    return {"valid_interest_mrr@10": _mrr(rank), "valid_interest_recall@200": float((rank < 200).mean())}


def _lists(retriever: Retriever, requests: Requests, beams: int) -> NDArray[np.int64]:
    return retriever.rank(requests, min(50, beams), beams)[0].astype(np.int64)


def places(items: NDArray[np.integer], requests: Requests) -> NDArray[np.float64]:
    """(Q,) the place of each target among items (Q, K), infinite where it is not there."""
    found = items == requests.target[:, None]
    return np.where(found.any(1), found.argmax(1), np.inf)


def _mrr(rank: NDArray[np.float64]) -> float:
    return float(np.where(rank < 10, 1 / (1 + rank), 0).mean())
