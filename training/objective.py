"""The loss of a language model that writes semantic IDs and texts.

At a label that is a code, the logits are those of its level only: the same normalisation as in search, and the output
layer costs a few hundred rows instead of the vocabulary. At a label that is text, they are of the whole vocabulary.
Only the states at labels reach the output layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from onesearch.model.language import OutputLayer
from onesearch.model.sid_tokens import embedding_tables
from training.losses import cross_entropy, distillation, example_mean, r_drop

IGNORED: Final = -100
"""The label where nothing is learnt."""


@dataclass(frozen=True)
class Terms:
    """Weights of the terms; OneSearch-V2's values are in the comments, and a term of weight 0 is not computed.

    Attributes:
        focal_alpha, focal_gamma: of the cross-entropy (2 and 3); 1 and 0 are the plain one.
        distillation: weight of the divergence from a teacher that reads keywords (.1), at temperature `tau` (1).
        teacher: the "same" weights, or their moving "average" with `decay` (.9 in the released settings).
        r_drop: weight of the divergence between two passes with other dropout (.5).
        fgm: how far embeddings are moved against the model for a second backward pass (.6).
    """

    focal_alpha: float = 1.0
    focal_gamma: float = 0.0
    distillation: float = 0.0
    tau: float = 1.0
    teacher: Literal["same", "average"] = "same"
    decay: float = 0.9
    r_drop: float = 0.0
    fgm: float = 0.0

    @property
    def averaged(self) -> bool:
        """Whether there is a teacher whose weights are averages."""
        return bool(self.distillation) and self.teacher == "average"


@dataclass(frozen=True)
class Answers:
    """What a model says at the P label positions of B examples.

    Attributes:
        parts: of each kind of label (a level's code, or text) the positions (p,), their logits (p, M) and their labels
            (p,) among the M.
        example: (P,) the example of each position. examples: B.
    """

    parts: tuple[tuple[Tensor, Tensor, Tensor], ...]
    example: Tensor
    examples: int

    def mean(self, term: Callable[..., Tensor], *others: Answers) -> Tensor:
        """The mean over examples of a term of these logits, the labels, and the logits of others to the same labels."""
        value = torch.zeros(len(self.example), device=self.example.device)
        for number, (place, logits, label) in enumerate(self.parts):
            values = term(logits, *(other.parts[number][1] for other in others), label)
            value = value.index_put((place,), values)
        return example_mean(value, self.example, self.examples)


class Objective(nn.Module):
    """A language model and its loss.

    Args:
        model: causal or encoder-decoder, maybe with adapters.
        start: token of each level's code 0. sizes: codes of each level.
    """

    def __init__(self, model: Any, start: Sequence[int], sizes: Sequence[int], terms: Terms) -> None:
        super().__init__()
        self.model, self.terms = model, terms
        self.levels = tuple(zip(start, sizes, strict=True))
        core: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._core = [core]  # not a second child
        self.config = core.config
        self._output = [OutputLayer(core, self._rows)]
        self._average: dict[str, str] = {}
        if terms.averaged:
            for number, (name, weight) in enumerate(self._learnt()):
                self._average[name] = f"average_{number}"
                self.register_buffer(f"average_{number}", weight.detach().clone())

    @property
    def core(self) -> Any:
        """The language model without what adapters put around it."""
        return self._core[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        decoder_input_ids: Tensor | None = None,
        teacher_ids: Tensor | None = None,
        teacher_mask: Tensor | None = None,
        teacher_labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of B examples.

        Args:
            input_ids, attention_mask: (B, T), padded behind. labels: (B, T), or (B, A) where there is a decoder; -100
                where nothing is learnt.
            decoder_input_ids: (B, A).
            teacher_ids, teacher_mask: (B, T') the same requests as a teacher reads them. teacher_labels: (B, T') or
                (B, A); the labels that `labels` has, in the same order.
        """
        terms, inputs = self.terms, (input_ids, attention_mask, labels, decoder_input_ids)
        taught = None
        if self.training and terms.distillation and teacher_ids is not None:
            with torch.no_grad(), self._as_teacher():
                taught = self._answers(teacher_ids, teacher_mask, teacher_labels, decoder_input_ids)
        said = self._answers(*inputs)
        loss = said.mean(self._cross_entropy)
        if self.training and terms.r_drop:
            again = self._answers(*inputs)
            loss = (loss + again.mean(self._cross_entropy)) / 2
            loss = loss + terms.r_drop * said.mean(lambda one, other, _: r_drop(one, other), again)
        if taught is not None:
            loss = loss + terms.distillation * said.mean(
                lambda one, goal, _: distillation(one, goal, terms.tau), taught
            )
        return {"loss": loss}

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher's average a step towards the weights."""
        for name, weight in self._learnt():
            if name in self._average:
                self.get_buffer(self._average[name]).lerp_(weight, 1 - self.terms.decay)

    def embeddings(self) -> list[Tensor]:
        """Those of the embedding tables, or of their rows, that are learnt; FGM moves them."""
        adapted: list[Tensor] = [weight for name, weight in self._learnt() if "trainable_tokens_delta" in name]
        if adapted:
            return adapted
        return [weight for weight in embedding_tables(self.core) if weight.requires_grad]

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Asked by the Trainer."""
        self.model.activation_checkpointing_enable(**options)

    def tie_weights(self) -> None:
        """Asked by accelerate after it made the weights anew; without it FSDP unties the output layer."""
        self.core.tie_weights()

    def _learnt(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)

    def _cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(logits, label, self.terms.focal_alpha, self.terms.focal_gamma)

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        """The weights are the teacher's for a while."""
        swapped = [(weight, self.get_buffer(self._average[name])) for name, weight in self._learnt() if self._average]
        own = [weight.data for weight, _ in swapped]
        for weight, average in swapped:
            weight.data = average
        try:
            yield
        finally:
            for (weight, _), data in zip(swapped, own, strict=True):
                weight.data = data

    def _answers(self, ids: Tensor, mask: Tensor | None, labels: Tensor | None, written: Tensor | None) -> Answers:
        assert mask is not None and labels is not None
        found = labels != IGNORED
        hidden, label = self._states(ids, mask, written)[found], labels[found]
        output, text = self._output[0], torch.ones_like(label, dtype=torch.bool)
        parts = []
        for first, size in self.levels:
            of_level = (label >= first) & (label < first + size)
            text &= ~of_level
            parts.append((of_level, slice(first, first + size)))
        kinds = [*parts, (text, slice(None))]
        places = [(kind.nonzero()[:, 0], rows) for kind, rows in kinds]
        return Answers(
            tuple(
                (place, output(hidden[place], rows), label[place] - (rows.start or 0))
                for place, rows in places
                if len(place)
            ),
            found.nonzero()[:, 0],
            len(labels),
        )

    def _states(self, ids: Tensor, mask: Tensor, written: Tensor | None) -> Tensor:
        """(B, T, D) states of a decoder-only model, or (B, A, D) of the decoder."""
        core = self.core
        if written is None:  # no token sees the padding, which comes behind it
            return core.base_model(input_ids=ids, use_cache=False).last_hidden_state
        used = None if mask is None or bool(mask.all()) else mask
        states = core.get_encoder()(input_ids=ids, attention_mask=used).last_hidden_state
        project = getattr(core, "enc_to_dec_proj", None)
        decoder = core.get_decoder()
        return getattr(decoder, "base_model", decoder)(
            input_ids=written,
            encoder_hidden_states=states if project is None else project(states),
            encoder_attention_mask=used,
            use_cache=False,
        ).last_hidden_state

    def _rows(self, part: slice) -> Tensor:
        """Rows of the output layer; those of the codes without making up the whole table where only they are learnt."""
        layer = self._output[0].layer
        adapter = getattr(layer, "token_adapter", layer)
        learnt = getattr(adapter, "trainable_tokens_delta", None)
        if learnt is None:
            return layer.weight[part]
        if part.start is None:
            return adapter.get_merged_weights(adapter.active_adapters)
        (name,) = adapter.active_adapters
        first = adapter.token_indices[name][0]
        return learnt[name][part.start - first : part.stop - first]
