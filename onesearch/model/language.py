"""Any Hugging Face language model whose vocabulary holds the codes of semantic IDs, one token a level.

A prompt is read once; then each step reads one new code of K beams a request. The prompt's keys and values exist once a
request (`onesearch.model.attention`), only those of the few generated codes once a beam. Of the output layer only the
rows of the next level's codes are computed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from onesearch.errors import UserError
from onesearch.model.attention import NAME as SHARED_CONTEXT
from onesearch.model.attention import Pair, SharedPast, Step
from onesearch.prefix import PrefixIndex

Pairs = tuple[Pair, ...]
"""Keys and values of each layer."""


@dataclass(frozen=True)
class Beams:
    """K prefixes of B requests: the states (B, K, D) after them, and the keys and values of their own tokens: for a
    causal model by step, otherwise per layer (B * K, heads, t, d)."""

    hidden: Tensor
    steps: tuple[Step, ...] = ()
    own: Pairs = ()


@dataclass(frozen=True)
class Prompt:
    """What a model has read of B requests, once each.

    Attributes:
        begin: the state of one empty prefix a request.
        shared: per layer the keys and values that all beams attend to.
        length: (B,) int64 tokens of each prompt; they come before the padding.
        mask: (B, 1, 1, S) bool, where there is a token.
        states: (B, S, D) encoder output, where there is an encoder.
    """

    begin: Beams
    shared: Pairs
    length: Tensor
    mask: Tensor
    states: Tensor | None = None

    @property
    def batch(self) -> int:
        return len(self.length)

    @property
    def hidden(self) -> Tensor:
        """(B, 1, D) the states after the prompts."""
        return self.begin.hidden


class LanguageModel(ABC):
    """Scores codes with a language model; `language_model` makes one.

    Attributes:
        level_sizes: codes of each level. level_start: token of each level's code 0.
        normalise: over a prefix's "children", so that the catalogue has all probability, or over all codes of the
            "level", as a loss over the level's codes trains it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        level_start: Sequence[int],
        level_sizes: Sequence[int],
        normalise: Literal["children", "level"] = "children",
    ) -> None:
        self.model, self.normalise = model.eval(), normalise
        self.level_start, self.level_sizes = tuple(level_start), tuple(level_sizes)
        if len(self.level_start) != len(self.level_sizes) or min(self.level_sizes, default=0) < 1:
            raise ValueError(f"{len(self.level_start)} first tokens for levels of {self.level_sizes} codes")
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(model).__name__} has no output layer")
        for level, (first, size) in enumerate(zip(self.level_start, self.level_sizes, strict=True)):
            if first < 0 or first + size > len(head.weight):
                raise UserError(
                    f"the {size} codes of level {level} begin at token {first}, "
                    f"the model has {len(head.weight)} tokens",
                    remedy="resize_token_embeddings() after adding the tokens",
                )
        model.set_attn_implementation(SHARED_CONTEXT)
        self._head = OutputLayer(model)
        self._check_head()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def check(self, index: PrefixIndex) -> None:
        """Raises a `UserError` where a catalogue has other levels, or codes out of their range."""
        if index.levels != len(self.level_sizes):
            raise UserError(
                f"the catalogue has {index.levels} levels, the model {len(self.level_sizes)}",
                remedy="use the semantic IDs that the model was trained on",
            )
        for level, (largest, size) in enumerate(zip(index.largest, self.level_sizes, strict=True)):
            if largest >= size:
                raise UserError(
                    f"the model has {size} codes",
                    place=f"level {level}",
                    value=largest,
                    remedy="use the semantic IDs that the model was trained on",
                )

    @torch.inference_mode()
    def read(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Prompt:
        """Read B prompts, padded on any side.

        Args:
            input_ids: (B, T) int64. attention_mask: (B, T), 0 where padded; by default nothing is.

        Raises:
            UserError: a prompt without tokens, or with more than the model can read. Nothing is cut off here: what of
                a history can be spared is for those who write the prompt to say.
        """
        used = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        length = used.sum(1)
        if input_ids.shape[1] == 0:
            raise UserError("empty prompts", remedy="give the query")
        if attention_mask is not None and not input_ids.is_meta:
            input_ids, used = self._trimmed(input_ids, used, length)
        room = self._room()
        if room is not None and input_ids.shape[1] > room:
            raise UserError(
                f"the prompt has {input_ids.shape[1]} tokens, the model can read {room}",
                place=f"request {int(length.argmax())}",
                remedy="leave out the oldest of the history",
            )
        return self._read(input_ids, used, length)

    @abstractmethod
    def step(self, prompt: Prompt, beams: Beams, parent: Tensor, tokens: Tensor) -> Beams:
        """The states of K' longer prefixes: `tokens` (B, K') after those of `beams` that `parent` (B, K') names."""

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """(..., M) float32 the model's own logits of the codes of level `depth` for states (..., D)."""
        first = self.level_start[depth]
        return self._head(hidden, slice(first, first + self.level_sizes[depth]))

    @abstractmethod
    def _read(self, input_ids: Tensor, used: Tensor, length: Tensor) -> Prompt: ...

    @abstractmethod
    def _own_logits(self, input_ids: Tensor) -> Tensor:
        """(B, V) what the model itself gives the whole vocabulary after prompts without padding."""

    @abstractmethod
    def _room(self) -> int | None:
        """The most tokens a prompt can have, if there is a limit."""

    def _trimmed(self, input_ids: Tensor, used: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens first, padding last, as little as possible; a `UserError` where there are no tokens."""
        shortest, longest = length.aminmax()
        if int(shortest) == 0:
            raise UserError("an empty prompt", place=f"request {int(length.argmin())}", remedy="give the query")
        order = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : int(longest)]
        return input_ids.gather(1, order), used.gather(1, order)

    def _check_head(self) -> None:
        """A `ValueError` where the rows of the output layer are not all that makes this model's logits."""
        if self.model.device.type == "meta":
            return
        tokens = torch.tensor([[self.level_start[0], self.level_start[-1]]], device=self.device)
        with torch.inference_mode():
            hidden = self.read(tokens).hidden[:, 0]
            expected = self._own_logits(tokens).float()
            for depth, (first, size) in enumerate(zip(self.level_start, self.level_sizes, strict=True)):
                own = expected[:, first : first + size]
                tolerance = 1e-4 if own.dtype == hidden.dtype else 0.05
                if not torch.allclose(self.logits(hidden, depth), own, rtol=tolerance, atol=tolerance, equal_nan=True):
                    raise ValueError(f"what {type(self.model).__name__} does to its logits is not known here")


class CausalLanguageModel(LanguageModel):
    """Llama, Qwen and other decoders: the prompt is followed by the codes."""

    def _read(self, input_ids: Tensor, used: Tensor, length: Tensor) -> Prompt:
        cache = DynamicCache()
        # No token can see the padding, which comes after it, and nobody looks at the states of the padding.
        states = self.model.base_model(input_ids=input_ids, past_key_values=cache, use_cache=True).last_hidden_state
        last = (length - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        begin = Beams(states.gather(1, last))
        return Prompt(begin, tuple((one.keys, one.values) for one in cache.layers), length, used[:, None, None])

    @torch.inference_mode()
    def step(self, prompt: Prompt, beams: Beams, parent: Tensor, tokens: Tensor) -> Beams:
        row = _rows(beams.hidden.shape[1], parent)
        steps = tuple(Step(one.pairs, one.row.index_select(0, row)) for one in beams.steps)
        past = SharedPast(prompt.shared, prompt.length, steps)
        # The K codes of a request come as if they followed each other, but at one position.
        states = self.model.base_model(
            input_ids=tokens,
            position_ids=(prompt.length + len(steps)).unsqueeze(1),
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=tokens.device),
            use_cache=False,
            shared_past=past,
        ).last_hidden_state
        if len(past.new) != len(prompt.shared):
            raise ValueError(f"{type(self.model).__name__} does not pass arguments on to its attention")
        newest = Step(
            tuple(past.new[layer] for layer in sorted(past.new)), torch.arange(tokens.numel(), device=tokens.device)
        )
        return Beams(states, (*steps, newest))

    def _own_logits(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits[:, -1]

    def _room(self) -> int | None:
        most = getattr(self.model.config, "max_position_embeddings", None)
        return None if most is None else most - len(self.level_sizes) + 1


class Seq2SeqLanguageModel(LanguageModel):
    """BART, T5 and other encoders with a decoder: the codes follow a begin token."""

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        begin = model.config.decoder_start_token_id
        if begin is None:
            begin = getattr(model.generation_config, "decoder_start_token_id", None)
        if begin is None:
            raise UserError("the model has no decoder_start_token_id", remedy="set it in the model's configuration")
        self.begin_token: int = begin
        decoder = model.get_decoder()
        self._decoder = getattr(decoder, "base_model", decoder)
        super().__init__(model, *args, **kwargs)

    def _read(self, input_ids: Tensor, used: Tensor, length: Tensor) -> Prompt:
        mask = used[:, None, None]
        states = self.model.get_encoder()(input_ids=input_ids, attention_mask=mask).last_hidden_state
        project = getattr(self.model, "enc_to_dec_proj", None)
        states = states if project is None else project(states)
        cross = DynamicCache()
        tokens = torch.full((len(input_ids), 1), self.begin_token, device=input_ids.device)
        begin = self._decode(states, mask, cross, (), tokens)
        return Prompt(begin, tuple((one.keys, one.values) for one in cross.layers), length, mask, states)

    @torch.inference_mode()
    def step(self, prompt: Prompt, beams: Beams, parent: Tensor, tokens: Tensor) -> Beams:
        assert prompt.states is not None
        row = _rows(beams.hidden.shape[1], parent)
        own = tuple((keys.index_select(0, row), values.index_select(0, row)) for keys, values in beams.own)
        return self._decode(prompt.states, prompt.mask, _cache(prompt.shared), own, tokens)

    def _decode(self, states: Tensor, mask: Tensor, cross: DynamicCache, own: Pairs, tokens: Tensor) -> Beams:
        """Read one token (B, K) of each beam; fills `cross` if it is empty."""
        cache = EncoderDecoderCache(_cache(own), cross)
        done = cache.get_seq_length()
        hidden = self._decoder(
            input_ids=tokens.view(-1, 1),
            attention_mask=torch.ones(1, 1, 1, done + 1, dtype=torch.bool, device=tokens.device),
            encoder_hidden_states=states,
            encoder_attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        kept = tuple((one.keys, one.values) for one in cache.self_attention_cache.layers)
        return Beams(hidden.view(*tokens.shape, -1), own=kept)

    def _own_logits(self, input_ids: Tensor) -> Tensor:
        begin = torch.full((len(input_ids), 1), self.begin_token, device=input_ids.device)
        return self.model(input_ids=input_ids, decoder_input_ids=begin).logits[:, -1]

    def _room(self) -> int | None:
        config = getattr(self.model, "encoder", self.model).config  # an EncoderDecoderModel has two
        return getattr(config, "max_position_embeddings", None)


class OutputLayer:
    """What a model does between its last state and its logits, for some rows of the vocabulary.

    Args:
        rows: the weights of a slice of the vocabulary, where they are not simply rows of the layer's.
    """

    def __init__(self, model: PreTrainedModel, rows: Callable[[slice], Tensor] | None = None) -> None:
        self.layer: Any = model.get_output_embeddings()
        self.rows = rows or (lambda part: self.layer.weight[part])
        part: Any = getattr(model, "decoder", model)  # the decoder of an EncoderDecoderModel
        config = part.config if hasattr(part, "config") else model.config
        predictions = getattr(getattr(part, "cls", None), "predictions", None)
        self.transform: nn.Module | None = getattr(predictions, "transform", None)
        self.before = config.d_model**-0.5 if getattr(config, "scale_decoder_outputs", False) else 1.0
        self.after = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.bias: Tensor | None = getattr(model, "final_logits_bias", None)

    def __call__(self, hidden: Tensor, rows: slice) -> Tensor:
        if self.transform is not None:
            hidden = self.transform(hidden)
        if self.before != 1:
            hidden = hidden * self.before
        bias = getattr(self.layer, "bias", None)
        logit = F.linear(hidden, self.rows(rows), None if bias is None else bias[rows])
        if self.after != 1:
            logit = logit * self.after
        if self.cap is not None:
            logit = (logit / self.cap).tanh() * self.cap
        if self.bias is not None:
            logit = logit + self.bias[0, rows]
        return logit.float()


def language_model(
    model: PreTrainedModel,
    level_start: Sequence[int],
    level_sizes: Sequence[int],
    normalise: Literal["children", "level"] = "children",
) -> LanguageModel:
    """A causal or an encoder-decoder model of Hugging Face as a scorer of semantic IDs.

    Args:
        model: put into evaluation mode, and given the attention of `onesearch.model.attention`.
        level_start: token of code 0 of each level; the tokens of a level follow each other.
        level_sizes: number of codes of each level.
        normalise: over the "children" of a prefix or over all codes of the "level".

    Raises:
        UserError: tokens that the model does not have.
        ValueError: a model whose logits or attention are not understood.
    """
    kind = Seq2SeqLanguageModel if model.config.is_encoder_decoder else CausalLanguageModel
    return kind(model, level_start, level_sizes, normalise)


def _rows(beams: int, parent: Tensor) -> Tensor:
    """(B * K') the rows, among B * K of K beams a request, of those that parent (B, K') names."""
    request = torch.arange(len(parent), device=parent.device).unsqueeze(1)
    return (request * beams + parent).flatten()


def _cache(pairs: Pairs) -> DynamicCache:
    """A cache that holds these, without copying them."""
    cache = DynamicCache()
    for keys, values in pairs:
        layer = DynamicLayer()
        layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache
