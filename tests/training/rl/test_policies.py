"""What a policy says of its samples is what they were drawn with, for every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up import TINY, write_yaml

from onesearch.corpus import TRAIN, VALID, Requests, make_split, sample_requests
from onesearch.retriever import Retriever
from onesearch.search import codes_of, sample, sample_without_replacement
from training import sft
from training.rl.policies import GeneratorPolicy, LanguagePolicy, policy_of
from training.rl.rollouts import Rolling, roll_out


def requests_of(retriever: Retriever, size: int = 6) -> Requests:
    return sample_requests(retriever.corpus, make_split(retriever.corpus), VALID, size, 0)


def made(retriever: Retriever, temperature: float = 1.0) -> GeneratorPolicy | LanguagePolicy:
    before = np.flatnonzero(make_split(retriever.corpus) == TRAIN)
    return policy_of(retriever.reader, retriever.table, temperature, before).eval()


@pytest.fixture(params=["generator", "llama", "bart"])
def retriever(request: pytest.FixtureRequest) -> Retriever:
    if request.param == "generator":
        return Retriever.load(request.getfixturevalue("trained_run"))
    return Retriever.load(request.getfixturevalue("language_run")(request.param))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("draw", [sample, sample_without_replacement])
def test_log_probabilities_are_those_that_samples_were_drawn_with(
    retriever: Retriever, draw: Any, temperature: float
) -> None:
    policy, requests = made(retriever, temperature), requests_of(retriever)
    inputs = policy.encode(requests)
    scorer = policy.scorer(inputs)
    found = draw(scorer, 5, temperature, random=torch.Generator().manual_seed(0))
    codes = codes_of(scorer.index, found.nodes).clone()
    said = policy(inputs=inputs, codes=codes)
    torch.testing.assert_close(said["log_prob"].sum(-1), found.proposal.clone(), atol=2e-4, rtol=1e-4)
    assert said["log_prob"].requires_grad and (said["entropy"] >= 0).all()
    begun = policy(inputs=inputs, codes=codes[..., :2])
    torch.testing.assert_close(begun["log_prob"], said["log_prob"][..., :2], atol=1e-5, rtol=1e-5)


def test_the_cross_entropy_of_what_was_bought_is_a_term(retriever: Retriever) -> None:
    policy, requests = made(retriever, 2.0), requests_of(retriever)
    labels = torch.from_numpy(retriever.table.codes[requests.target].astype(np.int64))
    inputs = policy.encode(requests)
    found = policy(inputs=inputs, codes=labels[:, None], labels=labels)["terms"]["sft"]
    plain = made(retriever, 1.0)(inputs=inputs, codes=labels[:, None])["log_prob"]
    torch.testing.assert_close(found, -plain.sum(-1).mean(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["distinct", "sample", "beam", "list"])
def test_a_rollout_does_not_depend_on_the_batch(retriever: Retriever, kind: str) -> None:
    policy, requests = made(retriever), requests_of(retriever)
    rolling = Rolling(kind=kind, group=4, length=5, beams=16)
    whole = roll_out(policy, requests, rolling, seed=1, step=2)
    assert whole.items.shape == ((6, 4, 5) if kind == "list" else (6, 4))
    part = roll_out(policy, requests.part(slice(2, 4)), rolling, seed=1, step=2)
    np.testing.assert_array_equal(part.items, whole.items[2:4])
    other = roll_out(policy, requests, rolling, seed=1, step=3)
    assert (kind == "beam") == bool((other.items == whole.items).all()), "each step has its own samples"
    if kind == "distinct":
        assert all(len(set(row)) == len(row) for row in whole.items.tolist())


def test_what_a_generator_learns_from_was_not_known(new_run: Callable[[str], Path]) -> None:
    """Items' taste vectors know who bought them: those to be learnt must not be among them."""
    run = new_run("run")
    options = {**TINY, "run": str(run), "recent": 0.5, "max_steps": 2, "eval_strategy": "no", "save_strategy": "no"}
    sft.train(*sft.parse(["--config", str(write_yaml(run.parent / "sft.yaml", options))]))
    retriever = Retriever.load(run)
    none = policy_of(retriever.reader, retriever.table, 1.0, np.zeros(0, np.int64))
    assert isinstance(none, GeneratorPolicy)
    learning = none.model.bound
    none.serve()
    serving = none.model.bound
    assert not torch.equal(learning.content[-1], serving.content[-1])
    text = none.model.config.content
    torch.testing.assert_close(learning.content[-1][:, :text], serving.content[-1][:, :text])


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_keywords_are_said_with_the_probabilities_of_the_model(
    language_run: Callable[[str], Path], family: str
) -> None:
    retriever = Retriever.load(language_run(family))
    policy, requests = made(retriever, 1.0), requests_of(retriever, 3)
    assert isinstance(policy, LanguagePolicy)
    rolling = Rolling(kind="keywords", group=3, length=4, beams=8, words=5)
    found = roll_out(policy, requests, rolling, seed=0, step=0)
    assert found.items.shape == (3, 3, 4) and found.words and len(found.texts) == 9
    said = policy(inputs=found.inputs, codes=found.codes, words=True)["log_prob"]
    model, begin = policy.model, getattr(retriever.reader.model, "begin_token", None)
    for request in range(3):
        prompt = found.inputs["input_ids"][request][found.inputs["attention_mask"][request].bool()]
        for sample_ in range(3):
            used = found.used[request, sample_]
            tokens = found.codes[request, sample_][used]
            with torch.no_grad():
                if begin is None:
                    logits = model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1]
                else:
                    written = torch.cat([torch.tensor([begin]), tokens[:-1]])
                    logits = model(input_ids=prompt[None], decoder_input_ids=written[None]).logits[0]
            expected = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(said[request, sample_][used], expected, atol=1e-4, rtol=1e-4)
