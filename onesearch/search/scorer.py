"""What every search strategy asks of a model: the log-probabilities of the codes that may follow some prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from onesearch.model.context import Context
from onesearch.model.generator import Generator
from onesearch.model.language import Beams, LanguageModel, Prompt
from onesearch.prefix import PrefixIndex
from onesearch.search.interest import Wanted

State = TypeVar("State")


class Scorer(Protocol[State]):
    """B requests that a model has read.

    Attributes:
        index: the prefix index that is generated from.
        batch: B.
        device: where the tensors are.
        closed: whether the probabilities of a prefix's children sum to 1; otherwise some probability goes to codes
            that no item has.
    """

    index: PrefixIndex
    batch: int
    device: torch.device
    closed: bool

    def begin(self) -> State:
        """The state of one empty prefix a request."""
        ...

    def next_codes(self, state: State, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (B, K, C) of the children of the prefixes `nodes` (B, K) of depth `depth`, -inf in empty
        places; the child nodes (B, K, C) and their codes (B, K, C), in empty places those of some child."""
        ...

    def advance(self, state: State, depth: int, parent: Tensor, code: Tensor) -> State:
        """The state of K' prefixes of depth `depth + 1`: of the prefix `parent` (B, K') the child `code` (B, K')."""
        ...


@dataclass(frozen=True)
class Followed:
    """State of a `GeneratorScorer`.

    Attributes:
        hidden: (B, K, D) decoder states after the prefixes. past: what its self-attention keeps of them.
        following: (B, K, H) which history slots begin with them.
    """

    hidden: Tensor
    past: DynamicCache
    following: Tensor


class GeneratorScorer:
    """Requests that a `Generator` has read."""

    closed = True

    def __init__(self, model: Generator, context: Context) -> None:
        self.model, self.context, self.index = model, context, context.catalogue.index
        self.batch, self.device = context.batch, context.states.device
        sizes = model.config.level_sizes
        if self.index.levels != len(sizes):
            raise ValueError(f"the catalogue has {self.index.levels} levels, the model {len(sizes)}")

    @property
    def interest(self) -> Wanted:
        """(B, I) interest vectors to search with; a `RuntimeError` where the model has no interest head."""
        if self.context.interest is None:
            raise RuntimeError("this model has no interest head")
        return Wanted(self.context.interest.detach())

    def begin(self) -> Followed:
        past = DynamicCache()
        hidden = self.model.step(self.context, past, 0)
        return Followed(hidden, past, (self.context.slot_codes[..., 0] >= 0)[:, None])

    def next_codes(self, state: Followed, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.model.next_codes(self.context, depth, state.hidden, nodes, state.following)

    def advance(self, state: Followed, depth: int, parent: Tensor, code: Tensor) -> Followed:
        continued = self.context.slot_codes[:, None, :, depth] == code.unsqueeze(-1)
        row = (parent + torch.arange(self.batch, device=self.device).unsqueeze(1) * state.hidden.shape[1]).flatten()
        past = DynamicCache()
        for number, layer in enumerate(state.past.layers):
            past.update(layer.keys.index_select(0, row), layer.values.index_select(0, row), number)
        hidden = self.model.step(self.context, past, depth, code)
        return Followed(hidden, past, rows(state.following, parent) & continued)


class LanguageScorer:
    """Prompts that a language model has read."""

    def __init__(self, model: LanguageModel, prompt: Prompt, index: PrefixIndex) -> None:
        """Raises a `UserError` where the index has other levels than the model, or codes out of their range."""
        model.check(index)
        self.model, self.prompt, self.index = model, prompt, index
        self.batch, self.device = prompt.batch, prompt.hidden.device
        self.closed = model.normalise == "children"

    def begin(self) -> Beams:
        return self.prompt.begin

    def next_codes(self, state: Beams, depth: int, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        child, code, valid = self.index.children(depth, nodes)
        logit = self.model.logits(state.hidden, depth)
        if not self.closed:
            logit = logit.log_softmax(-1)
        logit = logit.gather(-1, code).masked_fill(~valid, -torch.inf)
        return logit.log_softmax(-1) if self.closed else logit, child, code

    def advance(self, state: Beams, depth: int, parent: Tensor, code: Tensor) -> Beams:
        return self.model.step(self.prompt, state, parent, code + self.model.level_start[depth])


def rows(values: Tensor, parent: Tensor) -> Tensor:
    """values (B, K, ...) picked by parent (B, K')."""
    place = parent.view(*parent.shape, *[1] * (values.ndim - 2)).expand(*parent.shape, *values.shape[2:])
    return values.gather(1, place)
