"""What the catalogue adds to the logit of a child c of a prefix, beside what the decoder says of its code.

Four sources, each of which can be switched off (the composition is ours):

- the content below c: (A state + B query vector) . mean vector of the items below c, so that a prefix is understood
  before it has been seen often, and a new item from the first day. A vector is the text's in the relevance space and,
  of who bought the item, the taste's;
- spelling: how many of the query's terms (words and their trigrams) any item below c has (`Catalogue.covered`), as a
  share of what the best item has, weighed by the decoder state; what embeddings blur (a size, a number) stays sharp,
  and a typing error costs a word and a few trigrams only;
- a fresh prior: g . log(1 + recent purchases below c), with weights g that depend on the decoder state. Counts come
  from the popularity snapshot of the request's moment, through `PrefixIndex.mass`; they change without training;
- offers: o . share of the items below c that are on offer where and when the request is made, by kind, with weights o
  that depend on the decoder state.

They are sums over very different items at the first code. So there they are weighed at nodes further down
(`Catalogue.ahead`), and a first code gets the log of what its nodes sum up to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onesearch.dots import dots_of_pairs
from onesearch.model.ahead import look_ahead, powers
from onesearch.model.context import Context
from onesearch.model.generator_config import GeneratorConfig

COSINE_SCALE = 5.0
"""What the cosine of query and content counts at the beginning of training."""

TASTE_SCALE = 2.0
"""The same of the cosines of the user's purchases and content."""

SPELLING_POWERS = 3
"""Powers of the coverage that are weighed: first, fourth and sixteenth; high ones tell a full match."""


class Gates(NamedTuple):
    """What weighs content (..., V), powers of the coverage (..., P), popularities (..., R) and shares on offer (..., O)
    at one depth; a width is 0 where a source is switched off."""

    content: Tensor
    spelling: Tensor
    prior: Tensor
    offer: Tensor


class Sources(nn.Module):
    """The weights of the four sources at every depth."""

    def __init__(self, config: GeneratorConfig, width: int) -> None:
        super().__init__()
        self.levels, self.priors = len(config.level_sizes), config.priors
        self.text, self.taste = config.content, config.taste
        self.known = known = config.content + config.taste
        asked = config.content + 2 * config.taste
        self.prior_gate = nn.Linear(width, max(config.priors, 1) * self.levels)
        self.content_state = nn.Linear(width, known * self.levels, bias=False) if config.content else None
        self.content_query = nn.Linear(asked, known * self.levels, bias=False) if config.content else None
        self.spelling_gate = nn.Linear(width, SPELLING_POWERS * self.levels) if config.spelling else None
        with torch.random.fork_rng(devices=[]):  # so that the rest begins as it does without it
            self.offer_gate = nn.Linear(width, config.offers * self.levels) if config.offers else None

    def begin(self, module: nn.Module) -> None:
        """Give one of these layers the weights that training starts from."""
        if module is self.prior_gate:
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, 1.0 / max(self.priors, 1))
        elif module is self.offer_gate:
            nn.init.zeros_(module.weight)
        elif module is self.spelling_gate:
            nn.init.zeros_(module.weight)
            nn.init.ones_(module.bias)
        elif module is self.content_query:  # a dense retriever: a multiple of the cosine
            nn.init.zeros_(module.weight)
            for level in module.weight.data.split(self.known):
                level[:, : self.text].fill_diagonal_(COSINE_SCALE)
                for start in (self.text, self.known):
                    level[self.text :, start : start + self.taste].fill_diagonal_(TASTE_SCALE)

    def gates(self, context: Context, depth: int, hidden: Tensor) -> Gates:
        """The weights at this depth for states (B, K, D)."""
        wanted = spelling = prior = offer = hidden[..., :0]
        if self.content_state is not None and self.content_query is not None:
            part = slice(depth * self.known, (depth + 1) * self.known)
            wanted = F.linear(hidden, self.content_state.weight[part])
            wanted = wanted + F.linear(context.query_vector, self.content_query.weight[part]).unsqueeze(1)
        if self.spelling_gate is not None:
            spelling = self.spelling_gate(hidden).unflatten(-1, (self.levels, -1))[:, :, depth]
        if self.priors:
            prior = self.prior_gate(hidden).unflatten(-1, (self.levels, -1))[:, :, depth]
        if self.offer_gate is not None:
            offer = self.offer_gate(hidden).unflatten(-1, (self.levels, -1))[:, :, depth]
        return Gates(wanted, spelling, prior, offer)

    def ahead(self, context: Context, hidden: Tensor) -> Tensor:
        """(B, M_1) what the first codes gain from the nodes of depth `ahead + 1` below them, so that one good item far
        down is seen from the start.

        Args:
            hidden: (B, D) decoder states before the first code.
        """
        gates = (gate[:, 0] for gate in self.gates(context, 0, hidden.unsqueeze(1)))
        return look_ahead(context.catalogue, context.covered_ahead, context.snapshot, context.offered_ahead, *gates)

    def of_children(self, context: Context, depth: int, gates: Gates, child: Tensor, place: Tensor) -> Tensor:
        """(n,) what the sources add to the logits of some children.

        Args:
            gates: of the (B * K) prefixes. child: (B, K, C) nodes of depth `depth + 1`.
            place: (n,) which of the B * K * C children.
        """
        row, node = place // child.shape[-1], child.flatten()[place]
        request = row // child.shape[1]
        added = torch.zeros(len(node), dtype=gates.content.dtype, device=node.device)
        if gates.content.shape[1]:
            added = added + _dots(gates.content, row, context.catalogue.content[depth], node)
        if gates.spelling.shape[1]:
            covered = context.catalogue.covered(depth, node, context.terms[request], context.term_weights[request])
            powered = torch.stack(powers(covered, SPELLING_POWERS), -1)
            added = added + torch.linalg.vecdot(gates.spelling.index_select(0, row), powered)
        if gates.prior.shape[1]:
            mass = context.catalogue.log_mass[depth][context.snapshot[request], node]
            added = added + torch.linalg.vecdot(gates.prior.index_select(0, row), mass)
        if gates.offer.shape[1]:
            share = context.catalogue.offered[depth].of_nodes(context.offer_row[request], node)
            added = added + torch.linalg.vecdot(gates.offer.index_select(0, row), share)
        return added


def _dots(wanted: Tensor, row: Tensor, content: Tensor, node: Tensor) -> Tensor:
    """(n,) of the rows (n,), ascending, of wanted (R, V) and the nodes (n,) of content (M, V)."""
    if torch.is_grad_enabled() or row.device.type != "cpu":
        return torch.linalg.vecdot(wanted.index_select(0, row), content[node])
    edges = F.pad(torch.bincount(row, minlength=len(wanted)).cumsum(0), (1, 0))
    return dots_of_pairs(wanted, content, edges, node)
