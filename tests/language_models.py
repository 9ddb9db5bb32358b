"""Small random language models of every family, and the log-probabilities that they give each item by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

TEXT = 20
"""Text tokens; those of the codes follow."""

BEGIN = 2
WINDOW = 5
"""Places that an attention layer of the family "mistral" sees, and every other of "gemma2" and "gpt-oss"."""

CAPPED = ("gemma2", "gpt-oss")
"""Scores are bent, or there are sinks."""

CAUSAL = ("llama", "qwen3", "gpt2", "mistral", *CAPPED)
SEQ2SEQ = ("bart", "t5", "t5-untied", "bert")
FAMILIES = CAUSAL + SEQ2SEQ


@cache
def random_model(family: str, sizes: tuple[int, ...]) -> PreTrainedModel:
    """Two layers, with weights drawn so wide that distributions are far from uniform; the same one for all tests."""
    tokens = TEXT + sum(sizes)
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    wide = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    decoder = {"vocab_size": tokens, **wide, "num_key_value_heads": 2, "max_position_embeddings": 64, **special}
    begin = {"decoder_start_token_id": BEGIN, "pad_token_id": 0, "eos_token_id": None}
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**decoder))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**decoder, head_dim=4, tie_word_embeddings=True))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**decoder, sliding_window=WINDOW))
    elif family == "gemma2":
        bent = {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 4}
        model = Gemma2ForCausalLM(Gemma2Config(**decoder, head_dim=4, sliding_window=WINDOW, **bent))
    elif family == "gpt-oss":
        experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "rope_parameters": {"rope_type": "default"}}
        model = GptOssForCausalLM(GptOssConfig(**decoder, head_dim=4, sliding_window=WINDOW, **experts))
    elif family == "gpt2":
        sized = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, **sized, **special))
    elif family == "bart":
        ends = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sized = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 64}
        config = BartConfig(vocab_size=tokens, **ends, **sized, **begin, forced_eos_token_id=None)
        model = BartForConditionalGeneration(config)
        model.final_logits_bias.normal_(0, 1, generator=torch.Generator().manual_seed(5))
    elif family.startswith("t5"):
        sized = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 2}
        tied = not family.endswith("untied")
        model = T5ForConditionalGeneration(T5Config(vocab_size=tokens, **sized, **begin, tie_word_embeddings=tied))
    elif family == "bert":
        reads = BertConfig(vocab_size=tokens, **wide, max_position_embeddings=64)
        writes = BertConfig(
            vocab_size=tokens, **(wide | {"hidden_size": 8, "num_attention_heads": 2}), max_position_embeddings=64
        )
        both = EncoderDecoderConfig.from_encoder_decoder_configs(reads, writes)
        both.decoder_start_token_id, both.pad_token_id = BEGIN, 0
        model = EncoderDecoderModel(both)
    else:
        raise ValueError(family)
    random = torch.Generator().manual_seed(len(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in name:
                parameter.normal_(
                    0, 1.5 if "embed" in name or "shared" in name or "wte" in name else 0.5, generator=random
                )
    return model.eval()


def level_starts(sizes: Sequence[int]) -> list[int]:
    return [TEXT + sum(sizes[:level]) for level in range(len(sizes))]


def random_prompts(rng: np.random.Generator, requests: int = 3, longest: int = 9) -> list[NDArray[np.int64]]:
    return [rng.integers(3, TEXT, int(rng.integers(1, longest + 1))) for _ in range(requests)]


def padded(prompts: list[NDArray[np.int64]], side: str = "right") -> tuple[Tensor, Tensor]:
    """(B, T) tokens and mask."""
    longest = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        part = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        tokens[row, part] = torch.from_numpy(prompt)
        mask[row, part] = 1
    return tokens, mask


@torch.inference_mode()
def level_logits(
    model: PreTrainedModel, prompt: NDArray[np.int64], codes: NDArray[np.int32], sizes: Sequence[int]
) -> list[Tensor]:
    """L tensors (N, M_d): logits of each level's codes from the model's own full forward of a prompt with each item."""
    starts = level_starts(sizes)
    tokens = torch.from_numpy(codes.astype(np.int64)) + torch.tensor(starts)
    read = torch.from_numpy(prompt).expand(len(codes), -1)
    if model.config.is_encoder_decoder:
        begin = torch.full((len(codes), 1), BEGIN)
        logits = model(input_ids=read, decoder_input_ids=torch.cat([begin, tokens[:, :-1]], 1)).logits
    else:
        logits = model(input_ids=torch.cat([read, tokens[:, :-1]], 1)).logits[:, len(prompt) - 1 :]
    return [logits[:, level, first : first + sizes[level]].float() for level, first in enumerate(starts)]


def item_log_prob(
    model: PreTrainedModel,
    prompt: NDArray[np.int64],
    codes: NDArray[np.int32],
    sizes: Sequence[int],
    normalise: str = "children",
) -> Tensor:
    """(N, L) log-probability of every code of every item."""
    parts = []
    for level, logit in enumerate(level_logits(model, prompt, codes, sizes)):
        if normalise == "children":
            same = (codes[:, None, :level] == codes[None, :, :level]).all(-1)  # (N, N) of the same prefix
            child = torch.zeros(logit.shape, dtype=torch.bool)
            for item in range(len(codes)):
                child[item, codes[same[item], level]] = True
            logit = logit.masked_fill(~child, -torch.inf)
        parts.append(logit.log_softmax(-1).gather(1, torch.from_numpy(codes[:, level : level + 1].astype(np.int64))))
    return torch.cat(parts, 1)
