"""Histories that a `SequenceGenerator` has read, for every search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onesearch.model.contrastive import ranged_logits
from onesearch.model.seen import prefix_bonus
from onesearch.model.sequence import SequenceGenerator
from onesearch.search.interest import Wanted


@dataclass(frozen=True)
class SequenceKeys:
    """What a trained model compares its states with, computed once.

    Attributes:
        items: (N, D) vectors of the items, which histories are read as.
        nodes: L tensors (M_{d+1}, D) vectors of the prefixes. keys: the same at unit length.
    """

    items: Tensor
    nodes: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: SequenceGenerator) -> SequenceKeys:
        """The vectors of a model's catalogue."""
        items = model.item_vectors()
        nodes = tuple(model.node_vectors(depth, items) for depth in range(model.bound.index.levels))
        return cls(items, nodes, tuple(F.normalize(one.float(), dim=-1) for one in nodes))


class SequenceScorer:
    """B histories; the state of a search is nothing but the prefix, which its node tells.

    Args:
        states: (B, D) after the last position of each history.
        seen: (B, H) int64 the items of each history, each once, below 0 in empty places.
    """

    def __init__(self, model: SequenceGenerator, keys: SequenceKeys, states: Tensor, seen: Tensor) -> None:
        self.model, self.keys, self.states, self.index = model, keys, states.float(), model.bound.index
        self.seen = seen
        self._path = model.bound.path[seen.clamp(min=0)].masked_fill((seen < 0).unsqueeze(-1), -1)
        self.batch, self.device = len(states), states.device
        self.closed = model.config.normalise == "children"
        sizes = model.config.level_sizes
        if self.index.levels != len(sizes):
            raise ValueError(f"the catalogue has {self.index.levels} levels, the model {len(sizes)}")

    @property
    def interest(self) -> Wanted:
        """What the interest head is looking for; a `RuntimeError` where the model has none."""
        if self.model.interest is None:
            raise RuntimeError("this model has no interest head")
        with torch.inference_mode():
            return Wanted(self.model.interest(self.states), self.seen, float(self.model.bonus[-1]))

    def begin(self) -> None:
        return None

    def next_codes(self, state: None, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        prefix = self.keys.nodes[depth - 1][nodes] if depth else None
        asked = self.model.decoder[depth](self.states.unsqueeze(1), prefix)
        child, code, valid = self.index.children(depth, nodes)
        if not self.closed:
            level = (asked @ self.model.code_keys(depth).T * self.model.scale).log_softmax(-1)
            return level.gather(-1, code).masked_fill(~valid, -torch.inf), child, code
        if depth == 0:  # the root has all nodes of the next depth for children
            return (asked @ self.keys.keys[0].T * self.model.scale).log_softmax(-1), child, code
        edges = self.index.child[depth].long()
        first, count = edges[nodes].flatten(), (edges[nodes + 1] - edges[nodes]).flatten()
        logit = ranged_logits(
            asked.flatten(0, 1), self.keys.keys[depth], first, count, self.model.scale, child.shape[-1]
        )
        below = (child.unsqueeze(-1) == self._path[:, None, None, :, depth]).sum(-1)
        with torch.inference_mode():
            bonus = prefix_bonus(below, self.model.bound.count[depth][child], self.model.bonus[depth])
        return (logit.view(child.shape) + bonus).log_softmax(-1), child, code

    def advance(self, state: None, depth: int, parent: Tensor, code: Tensor) -> None:
        return None
