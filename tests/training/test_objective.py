"""The loss of a language model against its own logits, and the weights that each way of tuning learns."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from language_models import BEGIN, FAMILIES, TEXT, level_starts, random_model
from torch.nn import functional as F

from onesearch.model.language import language_model
from training.mixture import Collator
from training.objective import IGNORED, Objective, Terms
from training.tuning import Tuning, merged, tuned

SIZES = (4, 5, 6)
STARTS = level_starts(SIZES)
CODES = ((1, 2, 3), (0, 4, 5), (3, 0, 0))
PROMPTS = ([5, 6, 7, 8], [9], [4, 4, STARTS[1] + 2, 10, 11])


def batch(model: Any, written: bool = False) -> dict[str, torch.Tensor]:
    """Three prompts; the answers are semantic IDs, or with `written` the last one is text."""
    from onesearch.ragged import Ragged
    from training.material import Example

    answers = [[first + code for first, code in zip(STARTS, codes, strict=True)] for codes in CODES]
    if written:
        answers[2] = [7, 3]
    begin = BEGIN if model.config.is_encoder_decoder else None
    collator = Collator(None, 0, begin)  # type: ignore[arg-type]
    return collator._tensors(Example(Ragged.of(PROMPTS), Ragged.of(answers)))


def expected(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """The loss from the model's own logits: over the level at a code, over the vocabulary at text."""
    given = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**given).logits.float()
    rows = []
    for row, labels in zip(logits, inputs["labels"], strict=True):
        values = []
        for logit, label in zip(row, labels.tolist(), strict=True):
            if label == IGNORED:
                continue
            first, size = next(
                ((s, m) for s, m in zip(STARTS, SIZES, strict=True) if s <= label < s + m), (0, len(logit))
            )
            values.append(F.cross_entropy(logit[first : first + size], torch.tensor(label - first)))
        rows.append(torch.stack(values).mean())
    return torch.stack(rows).mean().item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("written", [False, True])
def test_it_is_the_loss_of_the_models_own_logits(family: str, written: bool) -> None:
    model = copy.deepcopy(random_model(family, SIZES))
    model.set_attn_implementation("eager")
    inputs = batch(model, written)
    loss = Objective(model, STARTS, SIZES, Terms()).eval()(**inputs)["loss"].item()
    assert loss == pytest.approx(expected(model, inputs), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_what_is_trained_is_what_is_searched(family: str) -> None:
    """The scores that the search adds up are the loss's: the log-probability over all codes of each level."""
    model = copy.deepcopy(random_model(family, SIZES))
    loss = Objective(model, STARTS, SIZES, Terms()).eval()(**batch(model))["loss"].item()
    language, total = language_model(model, STARTS, SIZES, "level"), 0.0
    for prompt, codes in zip(PROMPTS, CODES, strict=True):
        read = language.read(torch.tensor([prompt]))
        beams = read.begin
        for depth, code in enumerate(codes):
            total -= language.logits(beams.hidden, depth).log_softmax(-1)[0, 0, code].item()
            if depth < 2:
                beams = language.step(read, beams, torch.tensor([[0]]), torch.tensor([[STARTS[depth] + code]]))
    assert loss == pytest.approx(total / len(PROMPTS) / len(SIZES), rel=1e-4)


@pytest.mark.parametrize("tuning", ["lora", "rows"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "bart", "t5"])
def test_adapters_learn_the_rows_of_the_codes_and_merge(family: str, tuning: Tuning) -> None:
    """`llama` has an output layer of its own here, the others share the embeddings with it."""
    model = copy.deepcopy(random_model(family, SIZES))
    before = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    inputs = batch(model, written=True)
    plain = Objective(copy.deepcopy(model), STARTS, SIZES, Terms()).eval()(**inputs)["loss"].item()
    objective = Objective(tuned(model, tuning, range(TEXT, TEXT + sum(SIZES)), rank=2), STARTS, SIZES, Terms()).eval()
    assert objective(**inputs)["loss"].item() == pytest.approx(plain, rel=1e-5), "it starts where the backbone was"
    optimizer = torch.optim.Adam([one for one in objective.parameters() if one.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective(**inputs)["loss"]
        loss.backward()
        optimizer.step()
    learnt = objective(**inputs)["loss"].item()
    assert learnt < plain
    whole = merged(objective.model)
    assert expected(whole, inputs) == pytest.approx(learnt, rel=1e-3), "the merged model says the same"
    after = [whole.get_input_embeddings().weight, whole.get_output_embeddings().weight]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:TEXT], other[:TEXT]), "words keep their rows"
        assert (one[TEXT:] != other[TEXT:]).any()
    if family == "llama":
        assert not torch.equal(after[0], after[1])
    changed = [name for name, value in whole.state_dict().items() if "embed" not in name and "shared" not in name]
    moved = any(
        not torch.equal(whole.state_dict()[name], random_model(family, SIZES).state_dict()[name])
        for name in changed
        if "lm_head" not in name
    )
    assert moved == (tuning == "lora")


def with_dropout(rate: float) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration

    config = copy.deepcopy(random_model("bart", SIZES).config)
    assert isinstance(config, BartConfig)
    config.dropout = rate
    model = BartForConditionalGeneration(config)
    model.load_state_dict(random_model("bart", SIZES).state_dict())
    return model


def test_r_drop_costs_nothing_without_dropout_and_something_with_it() -> None:
    for rate, more in ((0.0, False), (0.3, True)):
        model = with_dropout(rate)
        inputs = batch(model)
        losses = []
        for weight in (1e-9, 5.0):
            torch.manual_seed(3)
            losses.append(Objective(model, STARTS, SIZES, Terms(r_drop=weight)).train()(**inputs)["loss"].item())
        assert (losses[1] > losses[0] + 1e-4) == more
        if not more:
            assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_teacher_is_the_same_model_with_another_prompt() -> None:
    model = with_dropout(0.0)
    inputs = batch(model)
    same = {
        "teacher_ids": inputs["input_ids"],
        "teacher_mask": inputs["attention_mask"],
        "teacher_labels": inputs["labels"],
    }
    plain = Objective(model, STARTS, SIZES, Terms()).train()(**inputs)["loss"].item()
    objective = Objective(model, STARTS, SIZES, Terms(distillation=0.5)).train()
    assert objective(**inputs, **same)["loss"].item() == pytest.approx(plain, rel=1e-5), "it has nothing to teach"
    other = same | {"teacher_ids": inputs["input_ids"].flip(0), "teacher_mask": inputs["attention_mask"].flip(0)}
    assert objective(**inputs, **other)["loss"].item() > plain + 1e-4
    assert objective.eval()(**inputs, **other)["loss"].item() == pytest.approx(plain, rel=1e-5), "only when it learns"


def test_a_teacher_of_averaged_weights_follows_them() -> None:
    model = with_dropout(0.0)
    inputs = batch(model)
    same = {
        "teacher_ids": inputs["input_ids"],
        "teacher_mask": inputs["attention_mask"],
        "teacher_labels": inputs["labels"],
    }
    objective = Objective(model, STARTS, SIZES, Terms(distillation=1.0, teacher="average", decay=0.75)).train()
    weight = objective.model.get_input_embeddings().weight
    start = weight.detach().clone()
    plain = Objective(model, STARTS, SIZES, Terms()).train()
    with torch.no_grad():
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    moved = weight.detach().clone()
    assert objective(**inputs, **same)["loss"].item() > plain(**inputs)["loss"].item() + 1e-4
    assert torch.equal(weight, moved), "the student has its own weights back"
    objective.follow()
    average = next(buffer for name, buffer in objective.named_buffers() if buffer.shape == weight.shape)
    torch.testing.assert_close(average, 0.75 * start + 0.25 * moved)


def test_padding_changes_nothing() -> None:
    for family in ("llama", "bart"):
        model = copy.deepcopy(random_model(family, SIZES))
        objective = Objective(model, STARTS, SIZES, Terms()).eval()
        inputs = batch(model)
        alone = []
        for row in range(3):
            used = int(inputs["attention_mask"][row].sum())
            one = {name: value[row : row + 1] for name, value in inputs.items()}
            cut = ("input_ids", "attention_mask") if "decoder_input_ids" in inputs else tuple(inputs)
            alone.append(objective(**one | {name: one[name][:, :used] for name in cut})["loss"].item())
        assert objective(**inputs)["loss"].item() == pytest.approx(np.mean(alone), rel=1e-5)
