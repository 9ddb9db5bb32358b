"""The reward model: towers for query, user and item, cross features, and heads for what may happen to a shown item.

Its shape is that of the reward model of OneSearch (https://arxiv.org/abs/2509.03236), a three-tower SIM: the query, the
user, and the item, where the user's query-relevant purchases are attended to with the candidate. Ours:

- Heads: click, and conversion given a click; *both* is their product, learnt over all shown items (ESMM,
  https://arxiv.org/abs/1804.07931). Relevance reads the query and the item alone: it is not personal.
- An item is its text, taste vector and price, its semantic ID's embeddings, and an embedding of its own, which may be
  pretrained generatively and frozen (GPSD, https://arxiv.org/abs/2506.03699; `training/pretrain.py`).
- Items of the history are read by the tower of the items, with their slot features; the candidate attends to them, and
  to one learnt place beside, so that it may attend to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from onesearch.model.views import Views, Words
from onesearch.reward.calibration import MonotoneCalibrator
from onesearch.reward.fusion import HEADS, DirichletPolicy


@strict
class RewardConfig(PreTrainedConfig):
    """Settings of a `RewardNetwork`.

    Args:
        width: of the towers. heads: of the attention to the history. dropout: before the heads.
        text_vocabulary: tokens of the queries.
        level_sizes: codes per level of a semantic ID.
        query: width of a query's text vector. taste: of the two taste vectors that follow it.
        content: width of what is known of an item by itself.
        slot_features: numbers that describe a history slot. cross: cross features, of which the first `text` are
            those of the texts.
        items: items that have an embedding, the first of the corpus; 0 for none.
        item_width: of these embeddings. frozen: whether they stay as they were loaded.
        views: what `ContextBuilder.views` needs of the model, by name.
        listwise: weight of the softmax over a request's list, beside the losses of the heads.
        relevance: weight of the relevance head's loss.
        fusion: weights of `HEADS` in the reward.
        calibration: "none"; "monotone", which keeps the order; or "field", which reads the item's vector too.
        policy: whether the weights of the heads are the policy's, for each request.
    """

    model_type = "onesearch-reward"

    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    text_vocabulary: int = 512
    level_sizes: list[int] | tuple[int, ...] = (256, 256, 256)
    query: int = 128
    taste: int = 256
    content: int = 129
    slot_features: int = 14
    cross: int = 35
    text: int = 3
    items: int = 0
    item_width: int = 64
    frozen: bool = False
    views: dict[str, Any] | None = None
    listwise: float = 0.0
    relevance: float = 1.0
    fusion: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0, 0.1)
    calibration: Literal["none", "monotone", "field"] = "none"
    policy: bool = False


@dataclass
class RewardOutput(ModelOutput):
    """loss (); logits (B, K, 3) of click, conversion given a click, relevance; context (B, 2 D) of user and query."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    context: Tensor | None = None


class RewardNetwork(PreTrainedModel):
    """Judges items of the catalogue that is bound to it."""

    config_class = RewardConfig
    base_model_prefix = "reward"
    main_input_name = "items"

    def __init__(self, config: RewardConfig) -> None:
        super().__init__(config)
        width = config.width
        starts = [config.text_vocabulary]
        for size in config.level_sizes:
            starts.append(starts[-1] + size)
        self.level_start = starts[:-1]
        self.words = nn.Embedding(starts[-1], width)  # the tokens of queries, then the codes of each level
        self.own = nn.Embedding(config.items, config.item_width) if config.items else None
        self.own_map = nn.Linear(config.item_width, width, bias=False) if config.items else None
        self.content = nn.Linear(config.content, width)
        self.item = _Tower(width, width)
        self.query = _Tower(config.query + width, width)  # nothing of the user: relevance reads it
        self.slot = nn.Linear(config.slot_features, width)
        self.keys, self.values = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.asks = nn.Linear(2 * width, width, bias=False)
        self.nothing = nn.Parameter(torch.zeros(2, 1, width))
        self.user = _Tower(config.query + config.taste + 2 * width, width)
        self.views = Views(config.views, width) if config.views else None
        # of the features that a training begins with
        self.register_buffer("cross_mean", torch.zeros(config.cross))
        self.register_buffer("cross_scale", torch.ones(config.cross))
        self.judge = _Tower(7 * width + config.cross, 2 * width, config.dropout)
        self.outcome = nn.Linear(2 * width, 2)
        self.fits = _Tower(3 * width + config.text, width)
        self.relevance = nn.Linear(width, 1)
        field = width if config.calibration == "field" else 0
        calibrated = HEADS[:3] if config.calibration != "none" else ()
        self.calibrators = nn.ModuleDict({head: MonotoneCalibrator(field) for head in calibrated})
        self.policy = DirichletPolicy(2 * width) if config.policy else None
        self.item_content: Tensor | None = None
        self.item_codes: Tensor | None = None
        self.vectors: Tensor | None = None
        self.post_init()
        if self.own is not None:
            self.own.weight.requires_grad_(not config.frozen)

    def _init_weights(self, module: nn.Module) -> None:
        """Everything else begins as torch makes it: small layers need larger weights than language models, and
        calibrators begin with zeros."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def bind(self, content: Tensor, codes: Tensor) -> RewardNetwork:
        """Set what is known of the items: content (N, V), codes (N, L). Items behind `config.items` have no embedding
        of their own."""
        self.item_content, self.item_codes = content.to(self.device), codes.to(self.device)
        self.vectors = None
        return self

    @torch.no_grad()
    def keep_vectors(self) -> RewardNetwork:
        """Compute the vectors of all items once: from then on a request costs none of the item tower."""
        content, _ = self.bound
        parts = torch.arange(len(content), device=content.device).split(1 << 14)
        self.vectors = torch.cat([self.item_vectors(part) for part in parts])
        return self

    @property
    def bound(self) -> tuple[Tensor, Tensor]:
        """Content and codes of the items; a `RuntimeError` where none are bound."""
        if self.item_content is None or self.item_codes is None:
            raise RuntimeError("bind() a catalogue first")
        return self.item_content, self.item_codes

    def item_vectors(self, items: Tensor) -> Tensor:
        """(n, D) vectors of items (n,)."""
        content, codes = self.bound
        found = self.content(content[items])
        found = found + self.words(codes[items] + torch.tensor(self.level_start, device=items.device)).sum(1)
        if self.own is not None and self.own_map is not None:
            known = items < self.config.items
            own = F.normalize(self.own(items.clamp(max=self.config.items - 1)), dim=-1)
            found = found + self.own_map(own) * known.unsqueeze(-1)
        vectors: Tensor = self.item(found)
        return vectors

    def _looked_up(self, items: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) and (B, H, D) vectors of candidates and of the history; each distinct item goes through the tower
        once."""
        if self.vectors is not None and not torch.is_grad_enabled():
            return self.vectors[items], self.vectors[slots]
        both = torch.cat([items.flatten(), slots.flatten()])
        distinct, place = torch.unique(both, return_inverse=True)
        vectors = self.item_vectors(distinct)
        found, read = F.embedding(place, vectors).split([items.numel(), slots.numel()])
        width = self.config.width
        return found.view(*items.shape, width), read.view(*slots.shape, width)

    def forward(
        self,
        items: Tensor,
        cross: Tensor,
        query_ids: Tensor,
        query_mask: Tensor,
        query_vector: Tensor,
        slot_items: Tensor,
        slot_features: Tensor,
        views: Mapping[str, Tensor] | None = None,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> RewardOutput:
        """Judge K items of each of B requests.

        Args:
            items: (B, K) int64, -1 in empty places. cross: (B, K, F).
            query_ids, query_mask: (B, T). query_vector: (B, query + taste).
            slot_items: (B, H) int64, -1 in empty places. slot_features: (B, H, slot_features).
            views: tensors of the views by name.
            labels: (B, K, 3) click, both and relevance, from 0 to 1.
            weights: (B, K, 3) of the labels in the loss; by default 1.
        """
        there, filled = items >= 0, slot_items >= 0
        item, slot = self._looked_up(items.clamp(min=0), slot_items.clamp(min=0))
        slot = slot + self.slot(slot_features.to(item.dtype))
        mask = query_mask.unsqueeze(-1).to(item.dtype)
        asked = (self.words(query_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        query = self.query(torch.cat([query_vector[:, : self.config.query], asked], -1))
        user = self._user(query_vector, slot, filled, asked, views)
        attended = self._attend(item, query, slot, filled)
        scaled = (cross - self.cross_mean) / self.cross_scale
        wide = item.shape[1]
        query_wide, user_wide = (one.unsqueeze(1).expand(-1, wide, -1) for one in (query, user))
        meeting = [item * query_wide, item * user_wide, item * attended]
        parts = [item, query_wide, user_wide, attended, *meeting, scaled]
        outcome = self.outcome(self.judge(torch.cat(parts, -1)))
        text = scaled[..., : self.config.text]
        relevance = self.relevance(self.fits(torch.cat([item, query_wide, item * query_wide, text], -1)))
        logits = torch.cat([outcome, relevance], -1)
        loss = None
        if labels is not None:
            loss = self._loss(logits, labels, there, weights)
        return RewardOutput(loss=loss, logits=logits, context=torch.cat([user, query], -1))

    def _user(
        self,
        query_vector: Tensor,
        slot: Tensor,
        filled: Tensor,
        asked: Tensor,
        views: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """(B, D) what is known of the user: taste, the history that fits the query, and the views."""
        weight = filled.unsqueeze(-1).to(slot.dtype)
        history = (slot * weight).sum(1) / weight.sum(1).clamp(min=1)
        seen = torch.zeros_like(history)
        if self.views is not None:
            positions = self.views(Words(self.words, self.level_start, asked), views or {})
            used = positions.used.unsqueeze(-1).to(seen.dtype)
            seen = (positions.states * used).sum(1) / used.sum(1).clamp(min=1)
        found: Tensor = self.user(torch.cat([query_vector, history, seen], -1))
        return found

    def _attend(self, item: Tensor, query: Tensor, slot: Tensor, filled: Tensor) -> Tensor:
        """(B, K, D) what of the history concerns each candidate."""
        rows, wide, width = item.shape
        asks = self.asks(torch.cat([item, query.unsqueeze(1).expand(-1, wide, -1)], -1))
        nothing = self.nothing.expand(2, rows, width).unsqueeze(2)
        keys, values = (
            torch.cat([extra, one(slot)], 1)
            for extra, one in zip(nothing.unbind(0), (self.keys, self.values), strict=True)
        )
        heads = self.config.heads
        asks, keys, values = (one.view(rows, -1, heads, width // heads).transpose(1, 2) for one in (asks, keys, values))
        mask = F.pad(filled, (1, 0), value=True)[:, None, None]
        found = F.scaled_dot_product_attention(asks, keys, values, attn_mask=mask)
        return found.transpose(1, 2).reshape(rows, wide, width)

    def _loss(self, logits: Tensor, labels: Tensor, there: Tensor, weights: Tensor | None) -> Tensor:
        click, conversion, relevance = logits.float().unbind(-1)
        weight = there.unsqueeze(-1).to(labels.dtype) * (1 if weights is None else weights)
        both = F.logsigmoid(click) + F.logsigmoid(conversion)
        rest = log_rest(both)
        bought = -(labels[..., 1] * both + (1 - labels[..., 1]) * rest)
        losses = torch.stack(
            [
                F.binary_cross_entropy_with_logits(click, labels[..., 0], reduction="none"),
                bought,
                self.config.relevance * F.binary_cross_entropy_with_logits(relevance, labels[..., 2], reduction="none"),
            ],
            -1,
        )
        loss = ((losses * weight).sum((0, 1)) / weight.sum((0, 1)).clamp(min=1)).sum()
        if self.config.listwise:
            loss = loss + self.config.listwise * listwise_loss(both - rest, labels[..., 1] * weight[..., 1], there)
        return loss

    def probabilities(self, logits: Tensor, items: Tensor) -> Tensor:
        """(B, K, 4) float64 of `HEADS`, calibrated where there are calibrators, from logits (B, K, 3) of items (B, K).

        In float32 two logits far from 0 may become one probability, and the order would not be kept.
        """
        raw = dict(zip(HEADS, raw_logits(logits.double()).unbind(-1), strict=True))
        relevance = raw.pop("relevance")
        if self.calibrators:
            field = None
            if self.config.calibration == "field":
                field = self._looked_up(items.clamp(min=0), items[:, :0])[0].detach().flatten(0, 1)
            raw = {name: self.calibrators[name](one.flatten(), field).view(one.shape) for name, one in raw.items()}
        return torch.stack([*(one.sigmoid() for one in raw.values()), relevance.sigmoid()], -1)

    def head_weights(self, context: Tensor) -> Tensor:
        """(4,) or (B, 4) weights of `HEADS` in the reward."""
        if self.policy is not None:
            found: Tensor = self.policy.mean(context)
            return found
        return torch.tensor(self.config.fusion, device=context.device)


def raw_logits(logits: Tensor) -> Tensor:
    """(..., 4) logits of `HEADS` before they are calibrated, from those of a click, of a conversion given a click, and
    of relevance (..., 3)."""
    click, conversion, relevance = logits.unbind(-1)
    both = F.logsigmoid(click) + F.logsigmoid(conversion)
    return torch.stack([click, conversion, both - log_rest(both), relevance], -1)


def log_rest(logs: Tensor) -> Tensor:
    """log(1 - exp(logs)) of logs of probabilities."""
    return torch.log(-torch.expm1(logs.clamp(max=-1e-6)))


class _Tower(nn.Sequential):
    def __init__(self, inputs: int, width: int, dropout: float = 0.0) -> None:
        layers = [nn.Linear(inputs, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width)]
        super().__init__(*layers, *([nn.Dropout(dropout)] if dropout else []))


def listwise_loss(logits: Tensor, labels: Tensor, there: Tensor) -> Tensor:
    """() softmax cross-entropy of lists (B, K) against their positive labels; lists without any have none."""
    masked = logits.masked_fill(~there, torch.finfo(logits.dtype).min)
    share = labels / labels.sum(1, keepdim=True).clamp(min=1e-6)
    nats = -(share * masked.log_softmax(1).masked_fill(~there, 0)).sum(1)
    told = labels.sum(1) > 0
    return (nats * told).sum() / told.sum().clamp(min=1)
