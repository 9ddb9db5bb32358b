"""Language models as scorers of semantic IDs: their own logits, what is shared, and prompts they cannot read."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from language_models import CAPPED, CAUSAL, FAMILIES, SEQ2SEQ, TEXT, level_starts, padded, random_model
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from onesearch.errors import UserError
from onesearch.model import attention
from onesearch.model.language import LanguageModel, language_model

SIZES = (4, 5, 6)
TOKENS = TEXT + sum(SIZES)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 4}
SMALL |= {"vocab_size": TOKENS, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0}


def made(family: str) -> LanguageModel:
    return language_model(random_model(family, SIZES), level_starts(SIZES), SIZES)


@pytest.mark.parametrize(
    "model",
    [
        GraniteForCausalLM(GraniteConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logits_scaling=7.0)),
        CohereForCausalLM(CohereConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}, logit_scale=0.3)),
        Gemma2ForCausalLM(Gemma2Config(**SMALL, attn_logit_softcapping=None, final_logit_softcapping=0.5)),
        *(random_model(family, SIZES) for family in FAMILIES),
    ],
    ids=["granite", "cohere", "gemma2", *FAMILIES],
)
def test_logits_are_the_models_own(model: Any) -> None:
    """Scaled, capped, biased, tied or not; the first code's, of prompts of unequal length."""
    language = language_model(model, level_starts(SIZES), SIZES)
    prompts = [np.array([3, 4, 5, 6]), np.array([7]), np.array([8, 9])]
    hidden = language.read(*padded(prompts)).hidden
    for row, prompt in enumerate(prompts):
        inputs = {"input_ids": torch.from_numpy(prompt)[None]}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.inference_mode():
            own = model(**inputs).logits[0, -1]
            for depth, (first, size) in enumerate(zip(level_starts(SIZES), SIZES, strict=True)):
                torch.testing.assert_close(
                    language.logits(hidden[row, 0], depth), own[first : first + size], atol=2e-4, rtol=1e-4
                )


def test_a_model_that_does_something_else_to_its_logits_is_refused() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.exp()
            return out

    with pytest.raises(ValueError, match="what Odd does to its logits is not known"):
        language_model(Odd(LlamaConfig(**SMALL)), level_starts(SIZES), SIZES)


def test_a_model_whose_attention_does_not_hear_of_the_prompt_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    for layer in model.model.layers:
        plain = layer.self_attn.forward
        layer.self_attn.forward = lambda *args, shared_past=None, plain=plain, **kwargs: plain(*args, **kwargs)
    language = language_model(model, level_starts(SIZES), SIZES)
    prompt = language.read(torch.tensor([[3, 4]]))
    with pytest.raises(ValueError, match="does not pass arguments on"):
        language.step(prompt, prompt.begin, torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[20, 21]]))


@pytest.mark.parametrize("family", CAPPED)
def test_soft_caps_and_sinks_are_the_librarys(family: str) -> None:
    """With and without padding, of a model that reads a prompt by itself; steps are compared with that elsewhere."""
    model = made(family).model
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    tokens, mask = padded([np.arange(3, 15), np.arange(3, 8)])
    with torch.inference_mode():
        for inputs in ({"input_ids": tokens[:1]}, {"input_ids": tokens, "attention_mask": mask}):
            own, expected = (one(**inputs).logits[0] for one in (model, plain))
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)


def test_soft_caps_outside_of_causal_models_are_refused() -> None:
    module, query = nn.Module(), torch.zeros(6, 4, 1, 4)
    for beams, causal in ((3, True), (1, False)):
        module.is_causal = causal  # type: ignore[assignment]
        with pytest.raises(ValueError, match="causal models only"):
            key = query[::beams]
            attention.shared_context_attention(module, query, key, key, None, softcap=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_kept_once_a_request(family: str) -> None:
    language, beams = made(family), 7
    prompt = language.read(*padded([np.arange(3, 9), np.array([4])]))
    assert all(len(keys) == len(values) == 2 and keys.shape[2] == 6 for keys, values in prompt.shared)
    state = language.step(
        prompt, prompt.begin, torch.zeros(2, beams, dtype=torch.int64), torch.arange(TEXT, TEXT + 2 * beams).view(2, -1)
    )
    assert state.hidden.shape == (2, beams, 16 if family != "bert" else 8)
    if family in CAUSAL:
        assert [len(step.pairs) for step in state.steps] == [2]
        assert all(keys.shape[:2] == (2, beams) for keys, _ in state.steps[0].pairs)
    else:  # the begin token, and a code
        assert [keys.shape[0] == 2 * beams and keys.shape[2] == 2 for keys, _ in state.own] == [True, True]


@pytest.mark.parametrize("family", CAUSAL)
def test_attention_in_blocks_is_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done where there is no fused attention that tells its sums, three beams at a time."""
    language = made(family)
    prompt = language.read(*padded([np.arange(3, 12), np.array([4, 5])]))
    parent, tokens = torch.zeros(2, 7, dtype=torch.int64), torch.arange(TEXT, TEXT + 14).view(2, 7)
    whole = language.step(prompt, prompt.begin, parent, tokens).hidden
    monkeypatch.setattr(attention, "BLOCK", 2 * 4 * 9 * 3)
    monkeypatch.setattr(attention, "_weighed", attention._weighed_in_blocks)
    torch.testing.assert_close(language.step(prompt, prompt.begin, parent, tokens).hidden, whole, atol=1e-5, rtol=1e-5)


def test_a_window_that_has_left_the_prompt() -> None:
    """Of the newest three codes only; the prompt and the first code are out of sight, and must not matter."""
    model = MistralForCausalLM(MistralConfig(**SMALL, sliding_window=2)).eval()
    language = language_model(model, level_starts(SIZES), SIZES)
    tokens = torch.tensor([[22, 25, 30]])
    state = (prompt := language.read(torch.tensor([[3, 4]]))).begin
    for token in tokens[0]:
        state = language.step(prompt, state, torch.zeros(1, 1, dtype=torch.int64), token.view(1, 1))
    with torch.inference_mode():
        own = model.model(torch.cat([torch.tensor([[3, 4]]), tokens], 1)).last_hidden_state[:, -1:]
    torch.testing.assert_close(state.hidden, own, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_cannot_be_read(family: str) -> None:
    language = made(family)
    with pytest.raises(UserError, match="request 1: an empty prompt"):
        language.read(torch.tensor([[3, 4], [0, 0]]), torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(UserError, match="empty prompts"):
        language.read(torch.zeros(2, 0, dtype=torch.int64))
    if family.startswith("t5"):  # reads prompts of any length
        return
    room = 64 - len(SIZES) + 1 if family in CAUSAL else 64
    fits = np.full(room, 3)
    language.read(*padded([fits, fits[:5]]))
    with pytest.raises(UserError, match=f"request 1: the prompt has {room + 1} tokens, the model can read {room}"):
        language.read(*padded([fits, np.append(fits, 3)]))


@pytest.mark.parametrize("family", ["llama", *SEQ2SEQ])
def test_tokens_that_the_model_does_not_have(family: str) -> None:
    model = random_model(family, SIZES)
    with pytest.raises(UserError, match="codes of level 2 begin at token 30, the model has 35 tokens"):
        language_model(model, [20, 24, 30], SIZES)
    with pytest.raises(ValueError, match="2 first tokens"):
        language_model(model, [20, 24], SIZES)


def test_a_decoder_without_a_begin_token() -> None:
    model = random_model("t5", (4, 5))
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    with pytest.raises(UserError, match="decoder_start_token_id"):
        language_model(model, level_starts((4, 5)), (4, 5))
