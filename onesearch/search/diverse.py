"""Diverse beam search: of the items whose semantic IDs begin alike, only so many come out.

The first codes of a semantic ID are what items have in common, so a page of results that may hold three items of a
prefix shows several kinds of things. Scores stay the model's log-probabilities; nothing is added or taken away, unlike
in the penalised groups of Vijayakumar et al., 2016 (https://arxiv.org/abs/1610.02424).
"""

from __future__ import annotations

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.search.beam import best_of
from onesearch.search.found import Found, check, check_filter, items_below
from onesearch.search.scorer import Scorer, State


@torch.inference_mode()
def diverse_beam_search(
    scorer: Scorer[State],
    prefixes: int,
    beams: int,
    k: int,
    depth: int,
    most: int,
    allowed: Allowed | None = None,
) -> Found:
    """The k best allowed items, at most `most` of them with the same first `depth` codes.

    A beam of width max(prefixes, k / most) reaches that many prefixes of `depth` codes; below each of them goes on a
    beam of its own, of width max(beams, most). As wide as the catalogue they find what scoring every item finds.

    Args:
        depth: from 1 to L.

    Raises:
        ValueError: a number below 1, a depth that is not between 1 and L, or a filter of another catalogue.
        FloatingPointError: the model's scores of a request, which is named, are not numbers.
    """
    index = scorer.index
    if min(prefixes, beams, k, most) < 1 or not 1 <= depth <= index.levels:
        raise ValueError(
            f"prefixes, beams, k and most must be at least 1 and depth from 1 to {index.levels}, "
            f"not {prefixes}, {beams}, {k}, {most} and {depth}"
        )
    check_filter(index, scorer.batch, allowed)
    prefixes, beams = max(prefixes, -(-k // most)), max(beams, most)
    state = scorer.begin()
    nodes = torch.zeros(scorer.batch, 1, dtype=torch.int64, device=scorer.device)
    scores = torch.zeros(scorer.batch, 1, device=scorer.device)
    groups = 1
    for level in range(index.levels):
        width = prefixes if level < depth else beams
        state, nodes, scores = grow(scorer, state, level, nodes, scores, groups, width, allowed)
        if level + 1 == depth:
            groups = scores.shape[1]
    found = _of_groups(scorer, nodes, scores, groups, k, most, allowed)
    check(found.scores)
    return found


def grow(
    scorer: Scorer[State],
    state: State,
    level: int,
    nodes: Tensor,
    scores: Tensor,
    groups: int,
    width: int,
    allowed: Allowed | None = None,
) -> tuple[State, Tensor, Tensor]:
    """One step of `groups` beams a request that do not compete with each other.

    Args:
        nodes, scores: (B, groups x K) the prefixes of depth `level`, those of a beam side by side.
        width: how many prefixes each beam keeps; of fewer, all.

    Returns:
        the state, nodes and scores (B, groups x K') of depth `level + 1`; the state of whole semantic IDs is the one
        before their last code.
    """
    log_prob, child, code = scorer.next_codes(state, level, nodes)
    each = nodes.shape[1] // groups
    total = (scores.unsqueeze(-1) + log_prob).flatten(1)
    if allowed is not None:
        total = total.masked_fill(~allowed.below(level + 1, child.flatten(1)), -torch.inf)
    scores, best, _ = best_of(total.reshape(scorer.batch * groups, -1), min(width, len(scorer.index.code[level])))
    start = torch.arange(groups, device=scorer.device).view(1, groups, 1) * (each * child.shape[-1])
    best = (best.view(scorer.batch, groups, -1) + start).flatten(1)
    parent = best // child.shape[-1]
    nodes, code = child.flatten(1).gather(1, best), code.flatten(1).gather(1, best)
    if level + 1 < scorer.index.levels:
        state = scorer.advance(state, level, parent, code)
    return state, nodes, scores.reshape(scorer.batch, -1)


def _of_groups(
    scorer: Scorer[State], nodes: Tensor, scores: Tensor, groups: int, k: int, most: int, allowed: Allowed | None
) -> Found:
    """The k best items of the leaves (B, groups x K), `most` of each group."""
    index, batch = scorer.index, scorer.batch
    if allowed is not None:  # every group is a request of its own
        row = allowed.row.expand(batch).repeat_interleave(groups, output_size=batch * groups)
        allowed = Allowed(allowed.index, allowed.total, row)
    nodes, scores = nodes.reshape(batch * groups, -1), scores.reshape(batch * groups, -1)
    items, leaf = items_below(index, nodes, scores != -torch.inf, most, allowed)
    empty = items < 0
    scores = scores.gather(1, leaf).masked_fill(empty, -torch.inf).view(batch, -1)
    nodes = nodes.gather(1, leaf).masked_fill(empty, 0).view(batch, -1)
    short = max(k - scores.shape[1], 0)
    scores = torch.nn.functional.pad(scores, (0, short), value=-torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :k], order[:, :k]
    items = torch.nn.functional.pad(items.view(batch, -1), (0, short), value=-1).gather(1, order)
    nodes = torch.nn.functional.pad(nodes, (0, short)).gather(1, order)
    return Found(items, scores, scores, nodes)
