"""Lists below sampled beginnings: some first codes are drawn, and each has a beam of its own below it.

What is drawn plays the part of a chain of thought: it says which kind of item is meant, and the list is what a search
that believes it would show.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.noise import Random
from onesearch.search.diverse import grow
from onesearch.search.found import check, codes_of, items_below
from onesearch.search.sampling import draw_prefixes
from onesearch.search.scorer import Scorer, State


@dataclass(frozen=True)
class Lists:
    """G beginnings of l codes for each of B requests, and the best k items below each.

    Attributes:
        codes: (B, G, l) the beginnings; those of empty places are some node's. there: (B, G) bool, which exist.
        log_prob: (B, G) float32 of the beginnings.
        items: (B, G, k) int64, best first, -1 in empty places. best: (B, G, L) the semantic ID of the first of each.
    """

    codes: Tensor
    there: Tensor
    log_prob: Tensor
    items: Tensor
    best: Tensor


@torch.inference_mode()
def lists_below(
    scorer: Scorer[State],
    depth: int,
    draws: int,
    k: int,
    temperature: float = 1.0,
    allowed: Allowed | None = None,
    random: Random = None,
) -> Lists:
    """At most `draws` different beginnings of `depth` codes, and the k best items below each, by a beam of width k.

    Raises:
        ValueError: a number below 1, or a depth that is not between 1 and L.
        FloatingPointError: the model's scores of a request, which is named, are not numbers.
    """
    index = scorer.index
    if min(draws, k) < 1 or not 1 <= depth <= index.levels:
        raise ValueError(f"draws and k must be at least 1 and depth from 1 to {index.levels}: {draws}, {k}, {depth}")
    drawn = draw_prefixes(scorer, depth, draws, temperature, allowed, random)
    there, groups = drawn.proposal > -torch.inf, drawn.nodes.shape[1]
    check(drawn.proposal)
    begun, state, nodes, scores = drawn.nodes, drawn.state, drawn.nodes, drawn.log_prob
    for level in range(depth, index.levels):
        state, nodes, scores = grow(scorer, state, level, nodes, scores, groups, k, allowed)
    check(scores)
    nodes, scores = nodes.view(scorer.batch * groups, -1), scores.view(scorer.batch * groups, -1)
    if allowed is not None:
        row = allowed.row.expand(scorer.batch).repeat_interleave(groups, output_size=scorer.batch * groups)
        allowed = Allowed(allowed.index, allowed.total, row)
    items, _ = items_below(index, nodes, (scores != -torch.inf) & there.view(-1, 1), k, allowed)
    return Lists(
        codes=codes_of(index, begun, depth),
        there=there,
        log_prob=drawn.log_prob,
        items=items.view(scorer.batch, groups, k),
        best=codes_of(index, nodes[:, 0]).view(scorer.batch, groups, -1),
    )
