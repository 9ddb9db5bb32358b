"""What alignment moves: a model that samples semantic IDs, and tells their log-probabilities with gradients.

Both sides use one normalisation, over the children of each prefix in the catalogue, at one temperature. So the ratio
of a policy and the one that it sampled from is exact, and 1 before the first update.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn

from onesearch.corpus import Requests
from onesearch.model.karma import karma_losses
from onesearch.model.language import OutputLayer, Seq2SeqLanguageModel
from onesearch.noise import exponentials
from onesearch.ragged import Ragged
from onesearch.readers import Reader
from onesearch.readers.generator import GeneratorReader, on_sale
from onesearch.readers.language import LanguageReader, save_language
from onesearch.search import GeneratorScorer, LanguageScorer
from onesearch.sid import SidTable


class GeneratorPolicy(nn.Module):
    """The project's own generator.

    Args:
        before: events that are known when learning; the items' taste vectors would otherwise know what is to be learnt.
    """

    def __init__(self, reader: GeneratorReader, temperature: float, table: SidTable, before: NDArray[np.int64]) -> None:
        super().__init__()
        self.model, self.temperature = reader.model, temperature
        self._reader = [reader]
        self._serving = reader.model.bound
        self.builder = reader.builder.knowing(before)
        self._learning = on_sale(table, self.builder)
        self.learn()

    @property
    def reader(self) -> GeneratorReader:
        return self._reader[0]

    def learn(self) -> None:
        """Know what was known before the events that are learnt from; `encode` and all that follows it do."""
        self.model.bind(self._learning)

    def serve(self) -> None:
        """Know all that the reader knows, to be validated."""
        self.model.bind(self._serving)

    def encode(self, requests: Requests) -> dict[str, Any]:
        """B requests as tensors for `scorer` and for the call."""
        return self.builder.inputs(requests)[0]

    @torch.inference_mode()
    def scorer(self, inputs: Mapping[str, Any]) -> GeneratorScorer:
        """The requests, to be searched for or sampled from; no gradients."""
        inputs = send_to_device(dict(inputs), self.model.device)
        return GeneratorScorer(self.model, self.model.read(**inputs))

    def forward(
        self,
        inputs: Mapping[str, Any],
        codes: Tensor,
        labels: Tensor | None = None,
        told: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """`log_prob` and `entropy` (B, G, l) of codes (B, G, l), and `terms`: losses () of what was bought by name.

        Args:
            labels: (B, L) what was bought: its cross-entropy is the term `sft`, and with `told` KARMA's losses follow.
        """
        context = self.model.read(**inputs)
        log_prob, entropy = [], []
        for choice in self.model.choices(context, codes):
            tempered = _tempered(choice.log_prob, self.temperature)
            log_prob.append(choice.taken(tempered))
            entropy.append(_entropy(tempered).expand(-1, codes.shape[1]))
        terms: dict[str, Tensor] = {}
        if labels is not None:
            hidden = self.model.hidden(context, labels[:, None, :-1])
            said = [one.taken(one.log_prob) for one in self.model.choices(context, labels[:, None], hidden)]
            terms["sft"] = -torch.stack(said, -1).sum(-1).mean()
            if told is not None:
                path = context.catalogue.index.nodes(labels)
                terms |= karma_losses(self.model, context, hidden[:, 0], labels, path, told)
        return {"log_prob": torch.stack(log_prob, -1), "entropy": torch.stack(entropy, -1), "terms": terms}

    def save(self, folder: Path) -> None:
        """Write the model so that `load_reader` reads it."""
        self.model.drop_decoders()
        self.reader.builder.save(folder)
        self.model.save_pretrained(folder)


class LanguagePolicy(nn.Module):
    """A language model of Hugging Face, causal or seq2seq, with a template for requests; what is not said here is as of
    a `GeneratorPolicy`."""

    def __init__(self, reader: LanguageReader, temperature: float, table: SidTable) -> None:
        super().__init__()
        reader.model.normalise = "children"  # as sampling is
        self.model, self.temperature = reader.model.model, temperature
        self._reader, self._table = [reader], table
        self._output = [OutputLayer(self.model)]
        self.start: Tensor
        self.register_buffer("start", torch.tensor(reader.model.level_start), persistent=False)

    @property
    def reader(self) -> LanguageReader:
        return self._reader[0]

    def learn(self) -> None:
        """A prompt knows its request's past and nothing else."""

    def serve(self) -> None:
        """The same."""

    def encode(self, requests: Requests, ask: str = "Answer:", keywords: Ragged | None = None) -> dict[str, Any]:
        ids, used = self.reader.writer.write(requests, keywords, ask=ask).tokens.padded(0)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(used)}

    @torch.no_grad()
    def say(self, inputs: Mapping[str, Any], group: int, most: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """`group` texts for each of B prompts: (B, G, T) tokens and which are said, the end among them.

        Args:
            most: T at most. keys: (B,) int64, where random numbers come from.
        """
        ids = inputs["input_ids"].to(self.model.device).repeat_interleave(group, 0)
        used = inputs["attention_mask"].to(ids.device).bool().repeat_interleave(group, 0)
        end = self.reader.writer.words.tokenizer.eos_token_id
        number = torch.arange(len(ids), device=ids.device)
        said = torch.zeros(len(ids), 0, dtype=torch.int64, device=ids.device)
        there = torch.zeros(len(ids), 0, dtype=torch.bool, device=ids.device)
        going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        vocabulary = torch.arange(self.model.get_output_embeddings().weight.shape[0], device=ids.device)
        for step in range(most):
            written = torch.cat([said, said[:, :1] if step else said.new_zeros(len(ids), 1)], 1)
            state = self._states(ids, used, written.unsqueeze(1))[:, 0, -1]
            log_prob = _tempered(self._output[0](state, slice(None)).log_softmax(-1), self.temperature)
            key = keys.repeat_interleave(group)[:, None]
            noise = exponentials(key.view(-1), tuple(log_prob.shape), ids.device, step, number[:, None], vocabulary)
            token = (log_prob - noise.log()).argmax(-1)
            said = torch.cat([said, token.masked_fill(~going, 0).unsqueeze(1)], 1)
            there = torch.cat([there, going.unsqueeze(1)], 1)
            going = going & (token != end)
            if not bool(going.any()):
                break
        shape = (len(ids) // group, group, said.shape[1])
        return said.view(shape), there.view(shape)

    def without_end(self, said: Ragged) -> Ragged:
        """Texts without the token that ends them."""
        kept = said.ids != self.reader.writer.words.tokenizer.eos_token_id
        row = np.repeat(np.arange(len(said)), said.lengths)[kept]
        ends = np.cumsum(np.bincount(row, minlength=len(said)))
        return Ragged(said.ids[kept], np.concatenate([[0], ends]).astype(np.int64))

    def spelt(self, said: Ragged) -> list[str]:
        """Texts as people read them."""
        tokenizer = self.reader.writer.words.tokenizer
        found: list[str] = tokenizer.batch_decode(said.rows(), skip_special_tokens=True)
        return found

    @torch.inference_mode()
    def scorer(self, inputs: Mapping[str, Any]) -> LanguageScorer:
        model = self.reader.model
        inputs = send_to_device(dict(inputs), self.model.device)
        return LanguageScorer(model, model.read(inputs["input_ids"], inputs["attention_mask"]), self.reader.index)

    def forward(
        self,
        inputs: Mapping[str, Any],
        codes: Tensor,
        labels: Tensor | None = None,
        told: Mapping[str, Tensor] | None = None,
        words: bool = False,
    ) -> dict[str, Any]:
        """As of a `GeneratorPolicy`; KARMA's terms are that one's alone.

        Args:
            words: `codes` are (B, G, T) tokens of text, which compete with the whole vocabulary.
        """
        ids, used = inputs["input_ids"], inputs["attention_mask"].bool()
        if words:
            found = [self._word_choices(self._states(ids, used, codes), codes)]
        else:
            shifted = codes + self.start[: codes.shape[-1]]
            found = self._code_choices(self._states(ids, used, shifted), codes, self.temperature)
        terms: dict[str, Tensor] = {}
        if labels is not None:
            states = self._states(ids, used, (labels + self.start)[:, None])
            said = [log_prob for log_prob, _ in self._code_choices(states, labels[:, None], 1.0)]
            terms["sft"] = -torch.cat(said, -1).sum(-1).mean()
        log_prob, entropy = (torch.cat(one, -1) for one in zip(*found, strict=True))
        return {"log_prob": log_prob, "entropy": entropy, "terms": terms}

    def save(self, folder: Path) -> None:
        writer = self.reader.writer
        save_language(folder, self.model, writer.words.tokenizer, self._table, writer, normalise="children")

    def _code_choices(self, hidden: Tensor, codes: Tensor, temperature: float) -> list[tuple[Tensor, Tensor]]:
        """l pairs (B, G, 1): log-probabilities of codes (B, G, l) among a prefix's children, and entropies."""
        index, language = self.reader.index.to(codes.device), self.reader.model
        nodes, found = torch.zeros_like(codes[..., 0]), []
        for depth, target in enumerate(index.nodes(codes)):
            child, code, valid = index.children(depth, nodes)
            first = language.level_start[depth]
            logit = self._output[0](hidden[:, :, depth], slice(first, first + language.level_sizes[depth]))
            logit = logit.gather(-1, code).masked_fill(~valid, -torch.inf)
            tempered = _tempered(logit.log_softmax(-1), temperature)
            place = (target - child[..., 0]).unsqueeze(-1)
            found.append((tempered.gather(-1, place), _entropy(tempered).unsqueeze(-1)))
            nodes = target
        return found

    def _word_choices(self, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G, T) log-probabilities of tokens among the vocabulary, and entropies."""
        tempered = _tempered(self._output[0](hidden, slice(None)).log_softmax(-1), self.temperature)
        return tempered.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), _entropy(tempered)

    def _states(self, ids: Tensor, used: Tensor, tokens: Tensor) -> Tensor:
        """(B, G, l, D) the states that say each of tokens (B, G, l)."""
        batch, group, length = tokens.shape
        if self.model.config.is_encoder_decoder:
            language = self.reader.model
            assert isinstance(language, Seq2SeqLanguageModel)
            begin = torch.full_like(tokens[..., :1], language.begin_token)
            written = torch.cat([begin, tokens[..., :-1]], -1).view(batch * group, length)
            mask = used[:, None, None]
            states = self.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
            project = getattr(self.model, "enc_to_dec_proj", None)
            states = states if project is None else project(states)
            decoder = self.model.get_decoder()
            hidden = getattr(decoder, "base_model", decoder)(
                input_ids=written,
                attention_mask=torch.ones(1, 1, length, length, dtype=torch.bool, device=ids.device).tril(),
                encoder_hidden_states=states.repeat_interleave(group, 0),
                encoder_attention_mask=mask.repeat_interleave(group, 0),
                use_cache=False,
            ).last_hidden_state
            return hidden.view(batch, group, length, -1)
        # The codes follow each prompt's last token; behind them comes the padding, which nothing sees.
        prompt = used.sum(1)
        place = prompt.view(-1, 1, 1) + torch.arange(length - 1, device=ids.device)
        whole = torch.nn.functional.pad(ids, (0, length - 1)).unsqueeze(1).expand(-1, group, -1).clone()
        whole.scatter_(2, place.expand(-1, group, -1), tokens[..., :-1])
        states = self.model.base_model(input_ids=whole.flatten(0, 1), use_cache=False).last_hidden_state
        said = (prompt - 1).view(-1, 1, 1) + torch.arange(length, device=ids.device)
        said = said.expand(-1, group, -1).reshape(batch * group, length, 1).expand(-1, -1, states.shape[-1])
        return states.gather(1, said).view(batch, group, length, -1)


def policy_of(
    reader: Reader, table: SidTable, temperature: float, before: NDArray[np.int64]
) -> GeneratorPolicy | LanguagePolicy:
    """The policy of a loaded model; a `TypeError` for a kind that cannot be aligned.

    Args:
        before: events before those that are learnt from.
    """
    if isinstance(reader, GeneratorReader):
        return GeneratorPolicy(reader, temperature, table, before)
    if isinstance(reader, LanguageReader):
        return LanguagePolicy(reader, temperature, table)
    raise TypeError(f"{type(reader).__name__} has no policy")


def _tempered(log_prob: Tensor, temperature: float) -> Tensor:
    return log_prob if temperature == 1 else (log_prob / temperature).log_softmax(-1)


def _entropy(log_prob: Tensor) -> Tensor:
    """(...) of distributions (..., C), -inf where there is nothing."""
    there = log_prob > -torch.inf
    return -(log_prob.exp() * log_prob.masked_fill(~there, 0)).sum(-1)
