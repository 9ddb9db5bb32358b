"""How well each way to an answer (`onesearch/search/fusion.py`) ranks on held-out requests, and the best mix of two.

Checkpoints are compared by it, without a look at the test requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from onesearch.corpus import Requests
from onesearch.readers.generator import GeneratorReader
from onesearch.readers.sequence import SequenceReader
from onesearch.search import beam_search
from onesearch.search.fusion import candidates

SHARES = tuple(round(0.1 * step, 1) for step in range(1, 10))
"""What interest may count beside generation; the best by NDCG@10 on validation requests is kept."""

WIDTH = 64
"""Beam width on validation requests, that of the retriever."""


@torch.inference_mode()
def validation(reader: GeneratorReader | SequenceReader, requests: Requests) -> tuple[dict[str, float], float]:
    """How well each mode finds the target of held-out requests, and the best of `SHARES` for both together.

    `ndcg@10` alone is that of both, or of what the model has.
    """
    ranks: dict[str, list[Tensor]] = {}
    for start in range(0, len(requests), 256):
        part = requests.part(slice(start, start + 256))
        right = torch.from_numpy(part.target.astype(np.int64)).to(reader.device).unsqueeze(1)
        scorer: Any = reader.read(part)
        if reader.interest is None:
            found = beam_search(scorer, WIDTH, 10)
            ranks.setdefault("generate", []).append(_rank(found.items, found.scores, right))
            continue
        items, log_prob, logit = candidates(scorer, reader.interest, WIDTH)
        ranks.setdefault("generate", []).append(_rank(items[:, :WIDTH], log_prob[:, :WIDTH], right))
        near, score = reader.interest.search(scorer.interest, 10)
        ranks.setdefault("interest", []).append(_rank(near, score, right))
        for share in SHARES:
            both = ((1 - share) * log_prob + share * logit).masked_fill(items < 0, -torch.inf)
            ranks.setdefault(f"both {share}", []).append(_rank(items, both, right))
    found_by = {mode: torch.cat(one).double() for mode, one in ranks.items()}
    ndcg = {mode: float(torch.where(rank < 10, 1 / torch.log2(rank + 2), 0).mean()) for mode, rank in found_by.items()}
    best = max((share for share in SHARES if f"both {share}" in ndcg), key=lambda one: ndcg[f"both {one}"], default=0.5)
    shown = {"generate": "generate", "interest": "interest", "both": f"both {best}"}
    values = {}
    for name, mode in shown.items():
        if mode in found_by:
            values[f"recall@10 {name}"] = float((found_by[mode] < 10).double().mean())
            values[f"ndcg@10 {name}"] = values["ndcg@10"] = ndcg[mode]
    return values, best


def _rank(items: Tensor, scores: Tensor, right: Tensor) -> Tensor:
    """(B,) how many of the items (B, K) score more than the right one (B, 1); infinite where it is not among them."""
    hit = items == right
    own = scores.masked_fill(~hit, -torch.inf).amax(1, keepdim=True)
    return (scores > own).sum(1).double().masked_fill(~hit.any(1), torch.inf)
