"""Draws of semantic IDs, with and without replacement: every draw is an allowed item, its probability exact.

Both draw from one distribution, code by code: the model's probabilities to the power of 1 / temperature, of those
children that hold an allowed item. At temperature 1 without a filter that is the model's own.

Without replacement: Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019
(https://arxiv.org/abs/1903.06059). Every leaf's log-probability gets Gumbel noise, drawn top down: the largest
perturbed value below a prefix is drawn first, then those of its children, given that. The k largest are k draws without
replacement, and a beam of width k finds them exactly. What deviates: temperature and filter, as above, and the noise of
the root is 0, for the order of the leaves does not depend on it.

Of a semantic ID that several allowed items share, one is drawn, each as likely.

Random numbers come from a generator, or, with a key for each request, from `onesearch.noise`: then the draws of
a request do not depend on the batch that it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.noise import Random, exponentials, uniforms
from onesearch.search.found import Found, check, check_filter, item_of_each
from onesearch.search.scorer import Scorer, State, rows


@dataclass(frozen=True)
class Sampled(Found):
    """Draws; those of each request in the order in which they were drawn, `scores` explained by the two functions.

    Attributes:
        proposal: (B, k) float32 log-probability of the semantic ID in the distribution that was drawn from; -inf in
            empty places.
    """

    proposal: Tensor


@torch.inference_mode()
def sample(
    scorer: Scorer[State],
    draws: int,
    temperature: float = 1.0,
    allowed: Allowed | None = None,
    random: Random = None,
) -> Sampled:
    """`draws` independent draws for each request; `scores` are those of the proposal.

    Raises:
        ValueError: no draws, a temperature that is not above 0, a filter of another catalogue.
        FloatingPointError: the model's scores of a request, which is named, are not numbers.
    """
    _check_arguments(scorer, draws, temperature, allowed)
    index, state = scorer.index, scorer.begin()
    nodes = torch.zeros(scorer.batch, 1, dtype=torch.int64, device=scorer.device)
    log_prob = proposal = torch.zeros(scorer.batch, 1, device=scorer.device)
    for depth in range(index.levels):
        step, tempered, child, code = _distribution(scorer, state, depth, nodes, temperature, allowed)
        parent = _parents(nodes, draws)
        shape = (scorer.batch, draws, tempered.shape[-1])
        number = torch.arange(draws, device=scorer.device).unsqueeze(-1)
        noise = exponentials(random, shape, scorer.device, depth, number, rows(child, parent))
        place = (tempered - noise.log()).argmax(-1)  # Gumbel noise is minus the log of exponential noise
        step, tempered, nodes, code = (
            rows(one, parent).gather(-1, place.unsqueeze(-1)).squeeze(-1) for one in (step, tempered, child, code)
        )
        log_prob, proposal = log_prob.gather(1, parent) + step, proposal.gather(1, parent) + tempered
        if depth + 1 < index.levels:
            state = scorer.advance(state, depth, parent, code)
    return _sampled(scorer, nodes, proposal, log_prob, proposal, allowed, random)


@torch.inference_mode()
def sample_without_replacement(
    scorer: Scorer[State],
    draws: int,
    temperature: float = 1.0,
    allowed: Allowed | None = None,
    random: Random = None,
) -> Sampled:
    """`draws` different semantic IDs for each request, or all if there are fewer; `scores` are the perturbed
    log-probabilities, of which the largest is 0.

    Raises:
        ValueError: no draws, a temperature that is not above 0, a filter of another catalogue.
        FloatingPointError: the model's scores of a request, which is named, are not numbers.
    """
    _check_arguments(scorer, draws, temperature, allowed)
    drawn = draw_prefixes(scorer, scorer.index.levels, draws, temperature, allowed, random)
    found = _sampled(scorer, drawn.nodes, drawn.perturbed, drawn.log_prob, drawn.proposal, allowed, random)
    short = draws - found.items.shape[1]
    if short <= 0:
        return found
    empty = {"items": -1, "nodes": 0, "scores": -torch.inf, "log_prob": -torch.inf, "proposal": -torch.inf}
    pad = torch.nn.functional.pad
    return Sampled(**{name: pad(getattr(found, name), (0, short), value=value) for name, value in empty.items()})


@dataclass(frozen=True)
class Prefixes(Generic[State]):
    """K different prefixes of one depth a request, drawn without replacement, in the order in which they were drawn.

    Attributes:
        state: of the scorer; of whole semantic IDs the one before their last code.
        nodes: (B, K) in empty places some node. log_prob, proposal: (B, K) of the prefix in the model and in the
            distribution that was drawn from, which is -inf in empty places. perturbed: (B, K) what ordered them.
    """

    state: State
    nodes: Tensor
    log_prob: Tensor
    proposal: Tensor
    perturbed: Tensor


def draw_prefixes(
    scorer: Scorer[State],
    depth: int,
    draws: int,
    temperature: float = 1.0,
    allowed: Allowed | None = None,
    random: Random = None,
) -> Prefixes[State]:
    """At most `draws` different prefixes of `depth` codes for each request; see `sample_without_replacement`."""
    index, state = scorer.index, scorer.begin()
    nodes = torch.zeros(scorer.batch, 1, dtype=torch.int64, device=scorer.device)
    log_prob = proposal = perturbed = torch.zeros(scorer.batch, 1, device=scorer.device)
    for level in range(depth):
        step, tempered, child, code = _distribution(scorer, state, level, nodes, temperature, allowed)
        phi = proposal.unsqueeze(-1) + tempered
        noise = -exponentials(random, tuple(phi.shape), scorer.device, level, child).log()
        value = _with_maximum(phi + noise, perturbed.unsqueeze(-1)).flatten(1)
        perturbed, best = value.topk(min(draws, len(index.code[level]), value.shape[1]), dim=1)
        parent = best // child.shape[-1]
        log_prob = (log_prob.unsqueeze(-1) + step).flatten(1).gather(1, best)
        proposal, nodes, code = (one.flatten(1).gather(1, best) for one in (phi, child, code))
        if level + 1 < index.levels:
            state = scorer.advance(state, level, parent, code)
    return Prefixes(state, nodes, log_prob, proposal, perturbed)


def _parents(nodes: Tensor, draws: int) -> Tensor:
    """(B, draws) the prefix (B, K) that each draw goes on from: its own, or at first the only one."""
    place = torch.arange(draws, device=nodes.device).clamp(max=nodes.shape[1] - 1)
    return place.expand(len(nodes), draws)


def _check_arguments(scorer: Scorer[State], draws: int, temperature: float, allowed: Allowed | None) -> None:
    if draws < 1 or not 0 < temperature < float("inf"):
        raise ValueError(f"draws must be at least 1 and temperature above 0, not {draws} and {temperature}")
    check_filter(scorer.index, scorer.batch, allowed)


def _distribution(
    scorer: Scorer[State], state: State, depth: int, nodes: Tensor, temperature: float, allowed: Allowed | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, K, C) the model's log-probability of each child, that with which it is drawn, child nodes, and codes."""
    log_prob, child, code = scorer.next_codes(state, depth, nodes)
    tempered = log_prob.float() / temperature
    if allowed is not None:
        tempered = tempered.masked_fill(~allowed.below(depth + 1, child.flatten(1)).view(child.shape), -torch.inf)
    none = (tempered == -torch.inf).all(-1, keepdim=True)
    return log_prob, tempered.log_softmax(-1).masked_fill(none, -torch.inf), child, code


def _with_maximum(value: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel values (B, K, C), -inf where empty, given that the largest of each row is `maximum` (B, K, 1): equation
    (23) of the paper, which stays exact where differences are small."""
    top = value.amax(-1, keepdim=True)
    none = top == -torch.inf
    gap = (value - top.masked_fill(none, 0)).clamp(max=0)
    v = maximum - value + torch.log(-torch.expm1(gap))
    moved = maximum - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    # of the largest itself v is -inf, and nothing is subtracted
    return moved.masked_fill((value == -torch.inf) | none | (maximum == -torch.inf), -torch.inf)


def _sampled(
    scorer: Scorer[State],
    nodes: Tensor,
    scores: Tensor,
    log_prob: Tensor,
    proposal: Tensor,
    allowed: Allowed | None,
    random: Random,
) -> Sampled:
    check(scores)
    empty = proposal == -torch.inf
    place = torch.arange(nodes.shape[1], device=scorer.device)
    share = uniforms(random, tuple(nodes.shape), scorer.device, scorer.index.levels, place)
    return Sampled(
        items=item_of_each(scorer.index, nodes, ~empty, share, allowed),
        scores=scores.masked_fill(empty, -torch.inf),
        log_prob=log_prob.masked_fill(empty, -torch.inf),
        nodes=nodes.masked_fill(empty, 0),
        proposal=proposal,
    )
