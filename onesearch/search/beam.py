"""Beam search over semantic IDs: every hypothesis is a prefix of an allowed item, every score exact.

A filter never changes a score: probabilities are normalised before it is looked at. As log-probabilities only fall
along a semantic ID, the best prefix that was ever cut bounds all items that were not reached: where it is below the
k-th result, the answer is that of scoring every item, and the search says so.

For the same reason a search can stop early for many of its prefixes: k items that a narrow beam has found leave no
place among the first k for what lies below a prefix that scores less than all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.search.found import Found, check, check_filter, items_below
from onesearch.search.scorer import Scorer, State


@dataclass(frozen=True)
class BeamFound(Found):
    """The result of a beam search.

    Attributes:
        exact: (B,) bool, whether no item that was not reached can have a higher score than the k-th result.
        mass: (B, 2) float32, least and most probability that the model gives the whole catalogue, as far as this
            search has seen; both 1 where probabilities are normalised over the children of a prefix.
    """

    exact: Tensor
    mass: Tensor


MARGIN = 1e-3
"""A score may come out so much lower beside other beams, by rounding; what is this close to the k-th result is kept."""


@torch.inference_mode()
def beam_search(
    scorer: Scorer[State], beams: int, k: int, allowed: Allowed | None = None, early_stop: bool = False
) -> BeamFound:
    """The k most probable allowed items among those that a beam of width `beams`, or k if that is more, reaches.

    With `beams` at least the number of prefixes of every depth the result is that of scoring every item. Items that
    share a semantic ID share its score and follow each other in the order of the index.

    Args:
        early_stop: a beam of width k goes first, and prefixes below its k-th result are dropped. The result is the
            same. It pays for a model that is sure of itself and `beams` well above k; otherwise the first beam is in
            vain. Each step waits for the device, to know how many prefixes are left.

    Raises:
        ValueError: `beams` or `k` is less than 1; a filter of another catalogue.
        FloatingPointError: the model's scores of a request, which is named, are not numbers.
    """
    if min(beams, k) < 1:
        raise ValueError(f"beams and k must be at least 1, not {beams} and {k}")
    check_filter(scorer.index, scorer.batch, allowed)
    if early_stop and beams > k:
        first = search(scorer, k, k, allowed)
        check(first.scores)
        least = first.scores[:, -1] - MARGIN
        found = search(scorer, beams, k, allowed, least)
        # A wide beam may lose what a narrow one keeps: then what was dropped might have been among its first k.
        if bool((found.scores[:, -1] >= least).all()):
            return found
    found = search(scorer, max(beams, k), k, allowed)
    check(found.scores)
    return found


def search(
    scorer: Scorer[State], width: int, k: int, allowed: Allowed | None, least: Tensor | None = None
) -> BeamFound:
    """`beam_search` that does not wait for the device, unless prefixes that score less than `least` (B,) are to go."""
    index = scorer.index
    state = scorer.begin()
    nodes = torch.zeros(scorer.batch, 1, dtype=torch.int64, device=scorer.device)
    scores = torch.zeros(scorer.batch, 1, device=scorer.device)
    cut = torch.full((scorer.batch,), -torch.inf, device=scorer.device)
    mass = torch.ones(scorer.batch, 2, device=scorer.device)
    for depth in range(index.levels):
        log_prob, child, code = scorer.next_codes(state, depth, nodes)
        total = (scores.unsqueeze(-1) + log_prob).flatten(1)
        if not scorer.closed:
            mass = torch.stack([total.exp().sum(1), mass[:, 1] - scores.exp().sum(1) + total.exp().sum(1)], 1)
        if allowed is not None:
            total = total.masked_fill(~allowed.below(depth + 1, child.flatten(1)), -torch.inf)
        if least is not None:
            total = total.masked_fill(total < least.unsqueeze(1), -torch.inf)
        scores, best, left = best_of(total, min(width, len(index.code[depth])))
        if least is not None:
            alive = max(int((scores != -torch.inf).sum(1).max()), 1)
            scores, best = scores[:, :alive], best[:, :alive]
        cut = torch.maximum(cut, left)
        parent = best // child.shape[-1]
        nodes, code = child.flatten(1).gather(1, best), code.flatten(1).gather(1, best)
        if depth + 1 < index.levels:
            state = scorer.advance(state, depth, parent, code)
    items, leaf = items_below(index, nodes, scores != -torch.inf, k, allowed)  # NaN is kept, to be told
    empty = items < 0
    found = scores.gather(1, leaf).masked_fill(empty, -torch.inf)
    return BeamFound(
        items=items,
        scores=found,
        log_prob=found,
        nodes=nodes.gather(1, leaf).masked_fill(empty, 0),
        exact=cut <= found[:, -1],
        mass=mass,
    )


def best_of(scores: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width`, or all, of (B, M) scores: (B, K) scores, their places, and (B,) the best that is left over."""
    if width >= scores.shape[1]:
        return *scores.sort(dim=1, descending=True, stable=True), scores.new_full(scores.shape[:1], -torch.inf)
    best, place = scores.topk(width + 1, dim=1)
    return best[:, :-1], place[:, :-1], best[:, -1]
