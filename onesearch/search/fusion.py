"""The two ways of one model to an answer, and both together: `--mode generate`, `interest`, `both`.

`generate` is the beam search over semantic IDs. `interest` takes the items nearest to the interest vector. `both` takes
the union of what the two find, gives every item of it both scores, exactly, and ranks by

    (1 - s) log P(semantic ID) + s logit of the interest head

with the share s of the model, which training chooses on validation requests. The logit is log P(item) of the interest
head up to a constant of the request, so this is a geometric mean of two distributions over items. The rule is ours.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, get_args

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.search.beam import beam_search
from onesearch.search.interest import InterestIndex, Wanted
from onesearch.search.scorer import Scorer, State
from onesearch.search.scores import item_log_prob

Mode = Literal["generate", "interest", "both"]
MODES: Final[tuple[str, ...]] = get_args(Mode)


class Interested(Scorer[State], Protocol[State]):
    """A scorer of a model with an interest head.

    Attributes:
        interest: what the requests are looking for.
    """

    @property
    def interest(self) -> Wanted: ...


@torch.inference_mode()
def fused(
    scorer: Interested[State],
    index: InterestIndex,
    beams: int,
    k: int,
    allowed: Allowed | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The best k of the union of a beam of width `beams`, or k, and as many nearest items: items and scores (B, k).

    Args:
        allowed, masks: the same filters, as the beam and as the index want them; (R, N) rows as in `allowed.row`.
    """
    items, log_prob, logit = candidates(scorer, index, max(beams, k), allowed, masks)
    score = ((1 - index.share) * log_prob + index.share * logit).masked_fill(items < 0, -torch.inf)
    best, place = score.sort(dim=1, descending=True, stable=True)
    found = items.gather(1, place)[:, :k].masked_fill(best[:, :k] == -torch.inf, -1)
    return found, best[:, :k]


@torch.inference_mode()
def candidates(
    scorer: Interested[State],
    index: InterestIndex,
    width: int,
    allowed: Allowed | None = None,
    masks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The union (B, 2 width) of what both find, each item once and -1 in empty places; log-probabilities and logits."""
    generated = beam_search(scorer, width, width, allowed)
    wanted = scorer.interest
    near, near_logit = index.search(wanted, width, masks, None if allowed is None else allowed.row)
    again = (near.unsqueeze(2) == generated.items.unsqueeze(1)).any(2)
    near = near.masked_fill(again, -1)
    items = torch.cat([generated.items, near], 1)
    log_prob = torch.cat([generated.scores, item_log_prob(scorer, near)], 1)
    logit = torch.cat([index.logits(wanted, generated.items), near_logit], 1)
    return items, log_prob, logit
