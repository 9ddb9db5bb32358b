"""The look ahead of a first code: the log of what the nodes some levels further down sum up to, for every first code.

A score for each of thousands of nodes and hundreds of requests is a matrix that does not fit any cache, and a dozen
sums, powers and exponentials over it would all wait for memory. So requests are taken in small groups, and the
gradient is written down here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from onesearch.model.catalogue import Catalogue

GROUP = 2**18
"""So many scores are worked on at once on a CPU: they stay in a core's own cache."""

FAINT = 1e-30
"""Added to sums that may be empty, so that a logarithm and its gradient stay finite."""


def powers(covered: Tensor, number: int) -> list[Tensor]:
    """The first, fourth, sixteenth, ... power of a coverage."""
    found = [covered]
    while len(found) < number:
        square = found[-1] * found[-1]
        found.append(square * square)  # several times as fast as a power
    return found


def look_ahead(
    catalogue: Catalogue,
    covered: Tensor,
    snapshot: Tensor,
    offered: Tensor,
    wanted: Tensor,
    spelling: Tensor,
    prior: Tensor,
    offer: Tensor,
) -> Tensor:
    """log sum exp(wanted . content + spelling . powers of the coverage + prior . log counts + offer . shares on offer)
    over the nodes below.

    Args:
        covered: (B, A) coverage of the nodes of depth `ahead + 1`. snapshot: (B,) popularity snapshot.
        offered: (O, B, A) share of the items below the nodes that are on offer.
        wanted: (B, V), spelling: (B, P), prior: (B, K), offer: (B, O); a width is 0 where a source is switched off.

    Returns:
        (B, M_1) for each first code; gradients flow to `wanted`, `spelling`, `prior` and `offer`.
    """
    return _LookAhead.apply(wanted, spelling, prior, offer, covered, snapshot, offered, catalogue)


class _LookAhead(Function):
    @staticmethod
    def forward(
        ctx: Any,
        wanted: Tensor,
        spelling: Tensor,
        prior: Tensor,
        offer: Tensor,
        covered: Tensor,
        snapshot: Tensor,
        offered: Tensor,
        catalogue: Catalogue,
    ) -> Tensor:
        nodes, first = covered.shape[1], catalogue.ahead_first
        share = torch.empty(covered.shape, dtype=wanted.dtype, device=wanted.device)
        summed = torch.full((len(wanted), len(catalogue.content[0])), FAINT, dtype=wanted.dtype, device=wanted.device)
        tops = torch.empty(len(wanted), 1, dtype=wanted.dtype, device=wanted.device)
        for rows in _groups(len(wanted), nodes, wanted.device):
            score = share[rows]  # worked on in place
            known = _known(
                catalogue, covered[rows], snapshot[rows], offered[:, rows], spelling.shape[1], prior.shape[1]
            )
            weight = torch.cat([spelling[rows], prior[rows], offer[rows]], 1)
            if wanted.shape[1]:
                torch.mm(wanted[rows], catalogue.content[catalogue.ahead].T, out=score)
            else:
                score.zero_()
            for number, values in enumerate(known):
                score.add_(values * weight[:, number, None])
            top = tops[rows] = score.amax(-1, keepdim=True)
            score.sub_(top).exp_()
            summed[rows] = summed[rows].index_add(1, first, score)
        ctx.save_for_backward(share, summed, covered, snapshot, offered)
        ctx.catalogue, ctx.widths = catalogue, (wanted.shape[1], spelling.shape[1], prior.shape[1], offer.shape[1])
        return summed.log() + tops

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        share, summed, covered, snapshot, offered = ctx.saved_tensors
        catalogue, (content, *widths) = ctx.catalogue, ctx.widths
        scaled = gradient / summed
        to_wanted = scaled.new_empty(len(scaled), content)
        to_weight = scaled.new_empty(len(scaled), sum(widths))
        for rows in _groups(len(scaled), share.shape[1], scaled.device):
            to_score = scaled[rows].index_select(1, catalogue.ahead_first) * share[rows]
            if content:
                torch.mm(to_score, catalogue.content[catalogue.ahead], out=to_wanted[rows])
            known = _known(catalogue, covered[rows], snapshot[rows], offered[:, rows], *widths[:2])
            for number, values in enumerate(known):
                to_weight[rows, number] = torch.linalg.vecdot(to_score, values)
        return to_wanted, *to_weight.split(widths, 1), None, None, None, None


def _groups(requests: int, nodes: int, device: torch.device) -> list[slice]:
    size = max(GROUP // max(nodes, 1), 1) if device.type == "cpu" else max(requests, 1)
    return [slice(start, start + size) for start in range(0, requests, size)]


def _known(
    catalogue: Catalogue, covered: Tensor, snapshot: Tensor, offered: Tensor, spelling: int, prior: int
) -> list[Tensor]:
    """P powers of the coverage, then K log counts, then O shares on offer, each (b, A)."""
    found = powers(covered, spelling) if spelling else []
    found += [mass.index_select(0, snapshot) for mass in catalogue.ahead_log_mass[:prior]]
    return [*found, *offered]
