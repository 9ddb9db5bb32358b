"""The generator: log-probabilities of the next code of a semantic ID, given a query and a user's purchases.

A seq2seq backbone of `transformers` (BART and T5 families) reads one position per history slot (the sum of the slot's
SID token embeddings and of its features) and the query's tokens, and predicts the codes of an item one by one. Codes
compete only with the codes that can follow the prefix in the catalogue: one normalisation in training, search and RL.

In the logit of a child of a prefix the decoder's own (its state against the code's token embedding, as in TIGER
(2305.05065) and OneSearch) meets what the catalogue says of the items below (`onesearch.model.sources`), and past
purchases add their own probability (`onesearch.model.copying`).

What else is read of the user, one position or a few for each view (`onesearch.model.views`), follows the query. With
an interest head a last position is read for what the user wants next (`onesearch.model.karma`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils import ModelOutput

from onesearch.model.attention import NAME as SHARED_CONTEXT
from onesearch.model.catalogue import Catalogue
from onesearch.model.context import Context
from onesearch.model.copying import CopyPath
from onesearch.model.generator_config import GeneratorConfig
from onesearch.model.karma import Decoders, Interest, karma_losses, leaf_codes, read_last
from onesearch.model.sources import Gates, Sources
from onesearch.model.views import Views, Words

COUNTED = ("cpu",)
"""Devices that are asked how many children there are; others would have to be waited for, and look up every place."""

PLACES = 2**18
"""So many of these are looked up at once."""

LEAST_COVERED = 0.1
"""A query of which no item has this share is compared with it."""


@dataclass
class GeneratorOutput(ModelOutput):
    """loss (); log_prob (B, L) of the target's codes; plain_log_prob (B, L) without the copy path; terms () that KARMA
    adds to the training's loss, by name and before they are weighed."""

    loss: Tensor | None = None
    log_prob: Tensor | None = None
    plain_log_prob: Tensor | None = None
    terms: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class Choice:
    """One choice among the children of K prefixes per request.

    Attributes:
        log_prob: (B, K', C) of the children, -inf in empty places; K' is 1 where all prefixes are one.
        plain: the same without the copy path, where it was asked for.
        place: (B, K) which child is taken.
    """

    log_prob: Tensor
    plain: Tensor | None
    place: Tensor

    def taken(self, values: Tensor) -> Tensor:
        """(B, K) the values (B, K', C) of what is taken."""
        return values.expand(-1, self.place.shape[1], -1).gather(-1, self.place.unsqueeze(-1)).squeeze(-1)


class Generator(PreTrainedModel):
    """Scores semantic IDs of the catalogue that is bound to it."""

    config_class = GeneratorConfig
    base_model_prefix = "generator"
    main_input_name = "query_ids"
    _supports_sdpa = True

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__(config)
        backbone: Any = config.backbone
        backbone.vocab_size = config.text_vocabulary + sum(config.level_sizes)
        backbone._attn_implementation = SHARED_CONTEXT
        self.backbone = AutoModel.from_config(backbone)
        width, levels = backbone.hidden_size, len(config.level_sizes)
        self.level_start = [config.text_vocabulary + sum(config.level_sizes[:level]) for level in range(levels)]
        self.slot_features = nn.Sequential(
            nn.Linear(config.history_features + 2, width), nn.GELU(), nn.Linear(width, width)
        )
        asked = config.content + 2 * config.taste
        self.query_position = nn.Linear(asked, width) if config.content else None
        self.copies = CopyPath(width, config.level_sizes, config.history_features + 2) if config.copy else None
        self.sources = Sources(config, width)
        with torch.random.fork_rng(devices=[]):  # so that the rest begins as it does without them
            self.views = Views(config.views, width) if config.views else None
            self.interest = Interest(width, config.interest, self.sources.known) if config.interest else None
            self.decoders = Decoders.of(config, width)
        self.catalogue: Catalogue | None = None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(self, "sources"):
            self.sources.begin(module)
        if module is getattr(getattr(self, "decoders", None), "soft", None) and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)  # from a vector of unit length to states as large as the encoder's

    def bind(self, catalogue: Catalogue) -> Generator:
        """Set the catalogue that is generated from; requests that were read before keep theirs."""
        self.catalogue = catalogue.to(self.device)
        return self

    def drop_decoders(self) -> None:
        """Leave out what only training needs."""
        self.decoders = None
        self.config.generate = self.config.reconstruct = self.config.regress = 0.0

    @property
    def bound(self) -> Catalogue:
        """The catalogue; a `RuntimeError` where none is bound."""
        if self.catalogue is None:
            raise RuntimeError("bind() a catalogue first")
        return self.catalogue

    # reading

    def read(
        self,
        query_ids: Tensor,
        query_mask: Tensor,
        slot_codes: Tensor,
        slot_features: Tensor,
        slot_coverage: Tensor,
        query_vector: Tensor,
        terms: Tensor,
        term_weights: Tensor,
        snapshot: Tensor,
        offer_row: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
    ) -> Context:
        """Encode B requests.

        Args:
            query_ids, query_mask: (B, T) int64 and bool.
            slot_codes: (B, H, L) int64, -1 in empty slots, which come last. slot_features: (B, H, F) float.
            slot_coverage: (B, H) float share of the query's terms that each slot's item has.
            query_vector: (B, V) float. terms, term_weights: (B, G) int64 and float, weight 0 pads.
            snapshot: (B,) int64. offer_row: (B,) int64, row of the catalogue's offers; None where the model reads none.
            views: the tensors of the views that the model reads, by name.
        """
        if self.catalogue is not None and self.catalogue.ahead_rows.device != self.device:
            self.bind(self.catalogue)
        embed = self.backbone.get_input_embeddings()
        filled = slot_codes[..., 0] >= 0
        catalogue = self.bound  # once: another thread may bind the next
        ahead = catalogue.covered_ahead(terms, term_weights)
        offer_row = torch.zeros_like(snapshot) if offer_row is None else offer_row
        offered = catalogue.offered[catalogue.ahead].of_all(offer_row) if self.config.offers else ahead[None][:0]
        best = ahead.amax(-1, keepdim=True).clamp(min=LEAST_COVERED)
        fit = slot_coverage / best
        slot_features = torch.cat([slot_features, fit.unsqueeze(-1), fit.square().square().unsqueeze(-1)], -1)
        slots = self._summed(self._tokens(slot_codes.clamp(min=0))) + self.slot_features(slot_features)
        # Each request in one piece, empty places last: where its words stand must not depend on its batch.
        parts, places = [slots, embed(query_ids)], [filled, query_mask]
        if self.query_position is not None:
            parts.insert(1, self.query_position(query_vector).unsqueeze(1))
            places.insert(1, torch.ones_like(query_mask[:, :1]))
        loss = None
        if self.views is not None:
            shown = self.views(Words(embed, self.level_start, _mean(parts[-1], query_mask)), views or {})
            parts.append(shown.states)
            places.append(shown.used)
            loss = shown.loss
        if self.interest is not None:
            parts.append(self.interest.position.weight.expand(len(query_ids), 1, -1))
            places.append(torch.ones_like(query_mask[:, :1]))
        used, inputs = torch.cat(places, 1), torch.cat(parts, 1)
        order = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        if order.shape[1] > getattr(self.config.backbone, "max_position_embeddings", order.shape[1]):
            order = order[:, : int(used.sum(1).max())]  # there are positions for what is used, not for all padding
        inputs = inputs.gather(1, order.unsqueeze(-1).expand(-1, -1, inputs.shape[-1]))
        mask = used.gather(1, order)[:, None, None]
        last = None if self.interest is None else read_last(mask)
        attended, mask = (mask, mask) if last is None else (last.attended, last.others)
        states = self.backbone.get_encoder()(inputs_embeds=inputs, attention_mask=attended).last_hidden_state
        interest = None
        if self.interest is not None and last is not None:
            interest = self.interest(states[torch.arange(len(states), device=states.device), last.place])
        return Context(
            catalogue=catalogue,
            states=states,
            mask=mask,
            slot_codes=slot_codes,
            copy_keys=None if self.copies is None else self.copies.key(states[:, : slot_codes.shape[1]]).float(),
            copy_bias=None if self.copies is None else self.copies.bias(slot_features, filled).float(),
            query_vector=query_vector,
            terms=terms,
            term_weights=term_weights / best,
            covered_ahead=ahead / best,
            snapshot=snapshot,
            offer_row=offer_row,
            offered_ahead=offered,
            cache=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            loss=loss,
            interest=interest,
        )

    def leaf_vectors(self, catalogue: Catalogue, leaf: Tensor) -> Tensor:
        """(..., I) unit vectors of the items at nodes (...) of a catalogue's last depth, to compare interest vectors
        with."""
        if self.interest is None:
            raise RuntimeError("this model has no interest head")
        summed = self._summed(self._tokens(leaf_codes(catalogue.index, leaf)))
        return self.interest.items(catalogue.content[-1][leaf], summed)

    def _tokens(self, codes: Tensor) -> Tensor:
        """(..., l) the first l codes of semantic IDs as tokens."""
        return torch.stack([code + first for code, first in zip(codes.unbind(-1), self.level_start, strict=False)], -1)

    def _summed(self, tokens: Tensor) -> Tensor:
        """(..., L) tokens -> (..., D) the sum of their embeddings, without a copy of each."""
        embed = self.backbone.get_input_embeddings()
        total = F.embedding_bag(tokens.flatten(0, -2), embed.weight, mode="sum")
        return total.unflatten(0, tokens.shape[:-1]) * getattr(embed, "embed_scale", 1.0)

    def hidden(self, context: Context, codes: Tensor) -> Tensor:
        """Decoder states after each of the prefixes of K code sequences per request.

        Args:
            codes: (B, K, l) int64, l >= 0 codes.

        Returns:
            (B, K, l + 1, D) float32: the state after the first 0..l codes.
        """
        batch, beams, length = codes.shape
        begin = torch.full((batch, beams, 1), self.config.begin_token, device=codes.device)
        tokens = (torch.cat([begin, self._tokens(codes)], -1) if length else begin).view(batch * beams, length + 1)
        causal = torch.ones(1, 1, length + 1, length + 1, dtype=torch.bool, device=codes.device).tril()
        return self._decoded(context, tokens, causal, DynamicCache()).view(batch, beams, length + 1, -1)

    def step(self, context: Context, past: DynamicCache, depth: int, code: Tensor | None = None) -> Tensor:
        """(B, K, D) float32 decoder states after one more code of K prefixes a request.

        Args:
            past: what the decoder's self-attention keeps of the codes before, (B * K) rows; the new code is added.
            code: (B, K) codes of level `depth`; None begins with the empty prefix.
        """
        if code is None:
            token = torch.full((context.batch, 1), self.config.begin_token, device=context.states.device)
        else:
            token = code + self.level_start[depth]
        seen = torch.ones(1, 1, 1, past.get_seq_length() + 1, dtype=torch.bool, device=token.device)
        return self._decoded(context, token.view(-1, 1), seen, past).view(*token.shape, -1)

    def _decoded(self, context: Context, tokens: Tensor, mask: Tensor, past: DynamicCache) -> Tensor:
        """(B * K, T, D) float32 states at tokens (B * K, T) that follow `past`, which they are added to."""
        cache = EncoderDecoderCache(past, context.cache.cross_attention_cache)
        cache.is_updated = context.cache.is_updated
        out = self.backbone.get_decoder()(
            inputs_embeds=self.backbone.get_input_embeddings()(tokens),
            attention_mask=mask,  # one that is given is not asked whether it is needed: a GPU would have to answer
            encoder_hidden_states=context.states,
            encoder_attention_mask=context.mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return out.float()

    # scoring

    def next_codes(
        self, context: Context, depth: int, hidden: Tensor, nodes: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the children of K prefixes per request, normalised over each prefix's children.

        Args:
            hidden: (B, K, D) decoder states after the prefixes. nodes: (B, K) their nodes of depth `depth`.
            following: (B, K, H) bool, which history slots begin with the prefix.

        Returns:
            log-probabilities (B, K, C), -inf in empty places; child nodes (B, K, C) and their codes (B, K, C).
        """
        _, logit, child, code = self._logits(context, depth, hidden, nodes, following)
        return logit.log_softmax(-1), child, code

    def _logits(
        self, context: Context, depth: int, hidden: Tensor, nodes: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, K, C) of the children without and with the copy path, child nodes, and their codes; in float32,
        as they are sums over many items."""
        device = hidden.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            plain, child, code = self._plain_logits(context, depth, hidden, nodes)
            if self.copies is None:
                return plain, plain, child, code
            return plain, self.copies(plain, code, context, depth, hidden, following), child, code

    def _plain_logits(self, context: Context, depth: int, hidden: Tensor, nodes: Tensor) -> tuple[Tensor, ...]:
        """Logits (B, K, C) of the children without the copy path, -inf in empty places; child nodes; their codes."""
        child, code, valid = context.catalogue.index.children(depth, nodes)
        first, size = self.level_start[depth], self.config.level_sizes[depth]
        table = self.backbone.get_input_embeddings().weight[first : first + size]
        logit = (hidden @ table.T).gather(-1, code)
        if depth == 0:
            logit = logit + self.sources.ahead(context, hidden[:, 0]).unsqueeze(1)
            return logit, child, code
        gates = Gates(*(gate.flatten(0, 1) for gate in self.sources.gates(context, depth, hidden)))
        if valid.device.type in COUNTED:  # most places are empty
            place = valid.flatten().nonzero().squeeze(1)
            value = logit.flatten()[place] + self.sources.of_children(context, depth, gates, child, place)
            return torch.full_like(logit, -torch.inf).flatten().index_put((place,), value).view_as(logit), child, code
        every = torch.arange(child.numel(), device=child.device).split(PLACES)
        known = torch.cat([self.sources.of_children(context, depth, gates, child, place) for place in every])
        return (logit + known.view_as(logit)).masked_fill(~valid, -torch.inf), child, code

    def choices(
        self, context: Context, codes: Tensor, hidden: Tensor | None = None, plain: bool = False
    ) -> Iterator[Choice]:
        """The l choices that lead to K given semantic IDs per request, or to prefixes of l codes.

        Args:
            codes: (B, K, l) int64. hidden: (B, K, l, D) `hidden(context, codes[..., :-1])`, where it is known already.
            plain: whether the log-probabilities without the copy path are wanted too.
        """
        if hidden is None:
            hidden = self.hidden(context, codes[..., :-1])
        following = (context.slot_codes[..., 0] >= 0)[:, None]
        nodes = torch.zeros_like(codes[:, :1, 0])
        for depth, target in enumerate(context.catalogue.index.nodes(codes)):
            state = hidden[:, :1, 0] if depth == 0 else hidden[:, :, depth]  # all begin alike
            spelt, logit, child, _ = self._logits(context, depth, state, nodes, following)
            yield Choice(logit.log_softmax(-1), spelt.log_softmax(-1) if plain else None, target - child[..., 0])
            following = following & (context.slot_codes[:, None, :, depth] == codes[..., depth, None])
            nodes = target

    def forward(
        self,
        query_ids: Tensor,
        query_mask: Tensor,
        slot_codes: Tensor,
        slot_features: Tensor,
        slot_coverage: Tensor,
        query_vector: Tensor,
        terms: Tensor,
        term_weights: Tensor,
        snapshot: Tensor,
        labels: Tensor,
        offer_row: Tensor | None = None,
        views: Mapping[str, Tensor] | None = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> GeneratorOutput:
        """Teacher-forced log-likelihood of the items with semantic IDs `labels` (B, L), and the training loss.

        Args:
            told: what KARMA's losses ask of the items, by name (`karma_losses`); without it they are left out.
        """
        context = self.read(
            query_ids,
            query_mask,
            slot_codes,
            slot_features,
            slot_coverage,
            query_vector,
            terms,
            term_weights,
            snapshot,
            offer_row,
            views,
        )
        hidden = self.hidden(context, labels[:, None, :-1])
        full, plain = [], []
        for choice in self.choices(context, labels[:, None], hidden, self.copies is not None):
            full.append(choice.taken(choice.log_prob)[:, 0])
            if choice.plain is not None:
                plain.append(choice.taken(choice.plain)[:, 0])
        log_prob = torch.stack(full, -1)
        loss = -log_prob.sum(-1).mean()
        if plain and self.training:  # held-out losses are nats per item, whatever the training adds
            plain_log_prob = torch.stack(plain, -1)
            loss = loss - self.config.plain_loss * plain_log_prob.sum(-1).mean()
        if context.loss is not None and self.training:
            loss = loss + context.loss
        extra = None
        if self.training and told is not None:
            path = context.catalogue.index.nodes(labels)
            extra = karma_losses(self, context, hidden[:, 0], labels, path, told)
            loss = loss + sum(getattr(self.config, name) * term for name, term in extra.items())
            extra = {name: term.detach() for name, term in extra.items()}
        if plain and self.training:
            plain_log_prob = plain_log_prob.detach()
            return GeneratorOutput(loss=loss, log_prob=log_prob.detach(), plain_log_prob=plain_log_prob, terms=extra)
        return GeneratorOutput(loss=loss, log_prob=log_prob.detach(), terms=extra)


def _mean(states: Tensor, used: Tensor) -> Tensor:
    """(B, T, D) states -> (B, D) the mean over the used places (B, T); zeros where none is."""
    weight = used.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


AutoConfig.register(GeneratorConfig.model_type, GeneratorConfig)
AutoModel.register(GeneratorConfig, Generator)
