"""A causal model of a user's history: one position an item, and after every position the semantic ID that follows.

A plain decoder of `transformers` (Llama, Qwen, GPT-2 families) reads vectors of items, not tokens. One pass over a
history therefore trains all its prefixes, as in SASRec (https://arxiv.org/abs/1808.09781), where a model that spells
semantic IDs inside the sequence (TIGER, https://arxiv.org/abs/2305.05065) needs L positions an item, or one pass for
every prefix. The composition is ours:

- a node of the catalogue's prefix tree, an item too, has the vector x = sum of the embeddings of its codes + W (mean
  content of the items below it), so that a prefix is understood before it has been seen often; an item may have an
  embedding of its own besides;
- position t reads x of the t-th item, and where the log has queries W_q (text vector of the query that was asked next);
- the codes of the answer are chosen level by level by a small decoder: u = MLP(state, x of the prefix) against the
  unit vectors of the prefix's children (`normalise: children`) or of the level's codes (`normalise: level`), the cosine
  over a temperature; the same normalisation in training and search;
- an interest head (`onesearch/model/interest.py`) compares the same state with the vectors of whole items;
- items of the history get a learnt bonus, positive or negative (`onesearch/model/seen.py`), where codes compete with
  the children of their prefix and in the interest head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from onesearch.model.contrastive import Bonus, ranged_softmax_loss, softmax_loss
from onesearch.model.interest import InterestHead
from onesearch.model.item_tree import ItemTree
from onesearch.model.seen import Seen, range_bonus

BEGIN, EMPTY = -1, -2
"""In place of an item: the beginning of a history, and a place behind its end."""


@strict
class SequenceConfig(PreTrainedConfig):
    """Settings of a `SequenceGenerator`.

    Args:
        backbone: any configuration of a causal model that reads `inputs_embeds`.
        level_sizes: codes per level.
        positions: items of the history that are read, the latest.
        content: width of the items' content vectors; 0 leaves content out.
        items: items that have an embedding of their own beside codes and content, the first of the corpus; 0 for none.
            It pays where most items are bought often enough.
        query: width of the queries' text vectors; 0 leaves queries out.
        temperature: of the cosines.
        dropout: of the vectors that are read and of the states.
        normalise: what a code competes with.
        interest: weight of the interest head's loss; 0 leaves the head out.
        negatives: items that the interest head's loss draws; 0 for all.
        interest_share: what interest counts beside generation in `--mode both`; see `onesearch.search.fusion`.
    """

    model_type = "onesearch-sequence"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "backbone": SubConfigSpec(config_class=AutoConfig, model_type="gpt2")
    }

    backbone: PreTrainedConfig | dict | None = None
    level_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    positions: int = 50
    content: int = 0
    items: int = 0
    query: int = 0
    temperature: float = 0.07
    dropout: float = 0.0
    normalise: Literal["children", "level"] = "children"
    interest: float = 1.0
    negatives: int = 0
    interest_share: float = 0.5


@dataclass
class SequenceOutput(ModelOutput):
    """loss (); nats () per item of generation and interest_nats () of the interest head, without gradients."""

    loss: Tensor | None = None
    nats: Tensor | None = None
    interest_nats: Tensor | None = None


class SequenceGenerator(PreTrainedModel):
    """Scores semantic IDs, and items, of the catalogue that is bound to it."""

    config_class = SequenceConfig
    base_model_prefix = "sequence"
    main_input_name = "items"
    _supports_sdpa = True

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config)
        backbone: Any = config.backbone
        backbone.vocab_size = 1  # tokens are never read
        self.backbone = AutoModel.from_config(backbone)
        width, levels = backbone.hidden_size, len(config.level_sizes)
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in config.level_sizes)
        self.content = nn.Linear(config.content, width, bias=False) if config.content else None
        self.items = nn.Embedding(config.items, width) if config.items else None
        self.query = nn.Linear(config.query, width, bias=False) if config.query else None
        self.begin = nn.Parameter(torch.zeros(width))
        self.dropout = nn.Dropout(config.dropout)
        self.decoder = nn.ModuleList(Decoder(width, prefix=level > 0) for level in range(levels))
        self.interest = InterestHead(width, width, config.temperature, config.negatives) if config.interest else None
        # of items in the history: one for the codes of each level, and one for the interest head; in units of a cosine
        self.repeat = nn.Parameter(torch.zeros(levels + 1))
        self.catalogue: ItemTree | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) or module is getattr(self, "content", None):
            nn.init.normal_(module.weight, std=0.02)

    def bind(self, catalogue: ItemTree) -> SequenceGenerator:
        """Set the catalogue that is generated from."""
        self.catalogue = catalogue.to(self.device)
        return self

    @property
    def bound(self) -> ItemTree:
        """The catalogue; a `RuntimeError` where none is bound."""
        if self.catalogue is None:
            raise RuntimeError("bind() a catalogue first")
        return self.catalogue

    @property
    def scale(self) -> float:
        return 1 / self.config.temperature

    @property
    def bonus(self) -> Tensor:
        """(L + 1,) what is added to the logits of items in the history (see `onesearch.model.seen`), by level, and last
        for the interest head. The first level has none: a first code has too many items for it to matter."""
        return self.repeat * self.scale

    # vectors

    def item_vectors(self) -> Tensor:
        """(N, D) vectors of all items."""
        total = self._vectors(self.bound.item_codes, self.bound.item_content)
        if self.items is None:
            return total
        later = len(total) - len(self.items.weight)  # items that came after the training
        return total + F.pad(self.items.weight, (0, 0, 0, later))

    def node_vectors(self, depth: int, items: Tensor) -> Tensor:
        """(M_{d+1}, D) vectors of the nodes of depth `depth + 1`, given `item_vectors()` (N, D)."""
        if self.bound.unique and depth + 1 == self.bound.index.levels:
            return items[self.bound.index.items.long()]
        return self._vectors(self.bound.codes[depth], self.bound.content[depth])

    def code_keys(self, level: int) -> Tensor:
        """(size, D) unit vectors of a level's codes, for `normalise: level`."""
        embedding = self.codes[level]
        assert isinstance(embedding, nn.Embedding)
        return F.normalize(embedding.weight.float(), dim=-1)

    def _vectors(self, codes: Tensor, content: Tensor) -> Tensor:
        total = sum(self.codes[level](codes[:, level]) for level in range(codes.shape[1]))
        assert isinstance(total, Tensor)
        return total if self.content is None else total + self.content(content)

    # reading

    def read(self, items: Tensor, vectors: Tensor, queries: Tensor | None = None) -> Tensor:
        """(B, T, D) states after each position.

        Args:
            items: (B, T) int64 items, BEGIN first where a history begins, EMPTY behind the end.
            vectors: (N, D) `item_vectors()`.
            queries: (B, T, Q) text vectors of what was asked after each item.
        """
        inputs = torch.where((items == BEGIN).unsqueeze(-1), self.begin, vectors[items.clamp(min=0)])
        if self.query is not None and queries is not None:
            inputs = inputs + self.query(queries)
        # No mask: what stands behind a position is not seen by it, and empty places stand behind all others.
        states = self.backbone(inputs_embeds=self.dropout(inputs), use_cache=False).last_hidden_state
        return self.dropout(states)

    def forward(self, items: Tensor, labels: Tensor, queries: Tensor | None = None) -> SequenceOutput:
        """The loss of the items `labels` (B, T) that follow each position; -1 where none is to be learnt."""
        vectors = self.item_vectors()
        unit = F.normalize(vectors.float(), dim=-1)
        states = self.read(items, vectors, queries)
        learnt = labels >= 0
        state, target = states[learnt].float(), labels[learnt]
        weight = torch.full((len(target),), 1 / max(len(target), 1), device=target.device)
        loss, nats = state.new_zeros(()), state.new_zeros(())
        seen = Seen.of(items, learnt)
        path = self.bound.path[target].unbind(1)
        prefix: Tensor | None = None
        for depth, node in enumerate(path):
            above = node.new_zeros(node.shape) if depth == 0 else path[depth - 1]
            nodes, keys = self._level(depth, vectors, unit)
            asked = self.decoder[depth](state, prefix)
            part, each = self._level_loss(depth, asked, keys, above, node, target, weight, seen)
            loss, nats = loss + part, nats + each.mean()
            prefix = None if nodes is None else nodes[node]
        output = SequenceOutput(loss=loss, nats=nats)
        if self.interest is not None:
            bonus = Bonus(seen.row, seen.item, self.bonus[-1])
            part, each = self.interest.loss(self.interest(state), unit, target, weight, bonus)
            output.loss, output.interest_nats = loss + self.config.interest * part, each.mean()
        return output

    def _level(self, depth: int, items: Tensor, unit: Tensor) -> tuple[Tensor | None, Tensor]:
        """The vectors of the nodes of depth `depth + 1`, None where no code follows, and at unit length: those of items
        are there already."""
        deepest = depth + 1 == self.bound.index.levels
        if deepest and self.bound.unique:
            return None, unit[self.bound.index.items.long()]
        nodes = self.node_vectors(depth, items)
        return None if deepest else nodes, F.normalize(nodes.float(), dim=-1)

    def _level_loss(
        self,
        depth: int,
        asked: Tensor,
        keys: Tensor,
        above: Tensor,
        node: Tensor,
        target: Tensor,
        weight: Tensor,
        seen: Seen,
    ) -> tuple[Tensor, Tensor]:
        if self.config.normalise == "level":
            code = self.bound.item_codes[target, depth]
            return softmax_loss(asked, self.code_keys(depth), code, weight, self.scale)
        if depth == 0:
            return softmax_loss(asked, keys, node, weight, self.scale)
        edges = self.bound.index.child[depth].long()
        first, path = edges[above], self.bound.path[:, depth]
        count = edges[above + 1] - first
        bonus = range_bonus(seen, path, first, count, self.bound.count[depth], self.bonus[depth])
        return ranged_softmax_loss(asked, keys, first, count, node, weight, self.scale, bonus)


class Decoder(nn.Module):
    """What is asked of the next code: a unit vector from the state and the prefix so far."""

    def __init__(self, width: int, prefix: bool) -> None:
        super().__init__()
        self.state = nn.Linear(width, width)
        self.prefix = nn.Linear(width, width, bias=False) if prefix else None
        self.out = nn.Linear(width, width)

    def forward(self, state: Tensor, prefix: Tensor | None) -> Tensor:
        """(..., D) states, and (..., D) vectors of the prefixes -> (..., D)."""
        hidden = self.state(state)
        if self.prefix is not None and prefix is not None:
            hidden = hidden + self.prefix(prefix)
        return F.normalize((state + self.out(F.gelu(hidden))).float(), dim=-1)


AutoConfig.register(SequenceConfig.model_type, SequenceConfig)
AutoModel.register(SequenceConfig, SequenceGenerator)
