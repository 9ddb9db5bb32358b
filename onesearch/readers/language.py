"""A language model of Hugging Face, with the template in which it reads requests.

A saved one is a folder: `config.json` (what this project needs to know), `backbone/` (the model and its tokenizer as
`transformers` saves them, safetensors, adapters merged, readable without the hub), and `relevance.safetensors` where
the template asks for relevant purchases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from onesearch.context.prompt import PromptOptions, PromptWriter, RelevantPurchases, TextTokens
from onesearch.context.relevance import RelevanceSpace
from onesearch.corpus import Corpus, Requests
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json, write_json
from onesearch.landing import TextCodes
from onesearch.model.backbone import quiet_loading
from onesearch.model.language import LanguageModel, language_model
from onesearch.model.sid_tokens import fingerprint, level_start
from onesearch.prefix import PrefixIndex
from onesearch.ragged import Ragged
from onesearch.run import Run
from onesearch.search import LanguageScorer
from onesearch.sid import SidTable

MODEL_TYPE: Final = "onesearch-language"
VERSION: Final = 1


class LanguageReader:
    """A language model, bound to the items on sale."""

    interest = None
    offers = None

    def __init__(self, table: SidTable, writer: PromptWriter, model: LanguageModel) -> None:
        self.writer, self.model = writer, model
        on_sale, kept = table.on_sale, torch.from_numpy(table.on_sale)
        index = PrefixIndex.build(table.codes[on_sale], table.order[on_sale])
        self.index: PrefixIndex = replace(index, items=kept[index.items])
        model.check(self.index)

    @classmethod
    def load(cls, run: Run, folder: Path, corpus: Corpus, table: SidTable) -> LanguageReader:
        """Read what `save_language` wrote.

        Raises:
            UserError: another version, other semantic IDs than those it was trained with, or a tokenizer without them.
        """
        about, place = read_json(folder / "config.json"), folder / "config.json"
        remedy = f"train it again: accelerate launch training/sft.py --run {run.folder} --stage {folder.name} ..."
        if about.get("version") != VERSION:
            raise UserError("made by another version", place=place, value=about.get("version"), remedy=remedy)
        known = int(about["items"])
        if tuple(about["level_sizes"]) != tuple(table.level_sizes) or len(table.codes) < known:
            problem = f"the model was trained with levels of {about['level_sizes']} codes, the SID table has"
            raise UserError(problem, place=place, value=list(table.level_sizes), remedy=remedy)
        if fingerprint(table, known) != about["sid"]:
            raise UserError("the SID table gives items other semantic IDs than at training", place=place, remedy=remedy)
        tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
        start = level_start(tokenizer, table, folder / "backbone")
        model = load_saved(folder)
        options = PromptOptions(**about["prompt"])
        space = None
        if options.history == "relevant":
            space = RelevanceSpace.load(folder, load_text_encoder(run.settings.encoder))
        words = TextTokens(tokenizer, model.config.is_encoder_decoder)
        writer = prompt_writer(run, corpus, table, words, start, options, space)
        return cls(table, writer, language_model(model, start, table.level_sizes, about["normalise"]))

    @property
    def device(self) -> torch.device:
        return self.model.device

    def read(self, requests: Requests) -> LanguageScorer:
        ids, used = self.writer.write(requests).tokens.padded(0)
        prompt = self.model.read(torch.from_numpy(ids).to(self.device), torch.from_numpy(used).to(self.device))
        return LanguageScorer(self.model, prompt, self.index)

    def given(self, requests: Requests) -> NDArray[np.int64]:
        return self.writer.write(requests).event


def prompt_writer(
    run: Run,
    corpus: Corpus,
    table: SidTable,
    words: TextTokens,
    start: Sequence[int],
    options: PromptOptions,
    space: RelevanceSpace | None,
) -> PromptWriter:
    """The writer of prompts for a run.

    Args:
        start: token of each level's code 0.
    """
    first = np.array(start, np.int64)
    relevant = None if space is None else RelevantPurchases(corpus, space, max(options.items, 1))
    encoder: list[TextCodes] = []  # loaded when a query is first asked for its semantic ID

    def query_sids(texts: Sequence[str]) -> Ragged:
        if not encoder:
            encoder.append(TextCodes.load(run.folder))
        codes = encoder[0](texts)
        return Ragged.full(codes + first[: codes.shape[1]])

    return PromptWriter(corpus, words, table.codes + first, options, relevant, query_sids)


def save_language(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Any,
    table: SidTable,
    writer: PromptWriter,
    weights: dict[str, torch.Tensor] | None = None,
    normalise: Literal["children", "level"] = "level",
) -> None:
    """Write a trained model so that `LanguageReader.load` reads it.

    Args:
        normalise: what it was trained with, see `LanguageModel`.
        weights: the model's, where they are not in it but split over processes.
    """
    with atomic_path(folder / "backbone") as path:
        model.save_pretrained(path, state_dict=weights)
        tokenizer.save_pretrained(path)
    if writer.relevant is not None:
        writer.relevant.space.save(folder)
    about = {
        "model_type": MODEL_TYPE,
        "version": VERSION,
        "level_sizes": list(table.level_sizes),
        "items": len(table.codes),
        "sid": fingerprint(table, len(table.codes)),
        "normalise": normalise,
        "prompt": asdict(writer.options),
    }
    write_json(folder / "config.json", about)


def load_saved(folder: Path) -> PreTrainedModel:
    """The model that `save_language` wrote."""
    folder = folder / "backbone"
    config = AutoConfig.from_pretrained(folder)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with quiet_loading():
        return kind.from_pretrained(folder, config=config)
