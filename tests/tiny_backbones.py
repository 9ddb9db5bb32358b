"""Tiny random language models on disk, each with a word-level tokenizer for the made-up shop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from made_up import BRANDS, KINDS, SIZES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL = ("<pad>", "<unk>", "<end>")
TEMPLATE = tuple("Query Semantic ID Searched Bought Answer Keywords Keyword Item Category : ; , > x2 x3 x4".split())  # noqa: SIM905
FAMILIES = ("bart", "mt5", "llama", "llama-untied", "qwen3", "bert")
ENCODERS = ("bert",)
"""Text encoders, which need a new decoder."""


def words() -> dict[str, int]:
    known = [*SPECIAL, *TEMPLATE, *sorted({*" ".join(KINDS).split(), *BRANDS, *SIZES})]
    return {word: place for place, word in enumerate(known)}


def tokenizer(frame: bool = False) -> PreTrainedTokenizerFast:
    """Words apart; with `frame` an end token follows each text, as in the T5 family."""
    plain = Tokenizer(WordLevel(words(), unk_token="<unk>"))
    plain.pre_tokenizer = Whitespace()
    if frame:
        plain.post_processor = TemplateProcessing(single="$A <end>", special_tokens=[("<end>", SPECIAL.index("<end>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=512
    )


def new_model(family: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """A random model, 32 wide."""
    torch.manual_seed(seed)
    size, ends = len(words()), {"pad_token_id": 0, "eos_token_id": SPECIAL.index("<end>")}
    wide = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    causal = {"vocab_size": size, **wide, "num_key_value_heads": 2, "max_position_embeddings": 256, **ends, **more}
    if family == "bart":
        parts = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
        parts |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 256}
        begin = {"bos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}
        return BartForConditionalGeneration(BartConfig(vocab_size=size, d_model=32, **parts, **begin, **ends, **more))
    if family == "mt5":
        sized = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 4, "num_layers": 2}
        config = MT5Config(
            vocab_size=size, **sized, decoder_start_token_id=0, tie_word_embeddings=False, **ends, **more
        )
        return MT5ForConditionalGeneration(config)
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**causal, head_dim=8, tie_word_embeddings=True))
    if family.startswith("llama"):
        return LlamaForCausalLM(LlamaConfig(**causal, tie_word_embeddings=not family.endswith("untied")))
    return BertModel(BertConfig(vocab_size=size, **wide, max_position_embeddings=256, pad_token_id=0, **more))


def write_backbone(folder: Path, family: str, **more: Any) -> Path:
    """A folder that `load_backbone` reads."""
    new_model(family, **more).save_pretrained(folder)
    tokenizer(family == "mt5").save_pretrained(folder)
    return folder
