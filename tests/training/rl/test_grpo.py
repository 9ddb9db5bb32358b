"""Alignment end to end: it learns what is rewarded, goes on where it was interrupted, and stops at what is wrong."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from alignments import CHEAP, FIRST_KINDS, NOTHING, TINY, curve, log_of, options
from launching import in_two_processes
from made_up import TINY as SHOP
from made_up import write_yaml
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.retriever import Request, Retriever
from onesearch.run import Run
from training import dpo, grpo, sft
from training.rl import trainer as trainers

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    "more",
    [
        {"rollout": "distinct"},
        {"rollout": "sample", "num_iterations": 2, "temperature": 1.5},
        {"rollout": "list", "list_length": 4, "num_generations": 4},
        {"rollout": "list", "list_length": 4, "list_follow": "best", "num_generations": 4, "loss_type": "dapo"},
    ],
    ids=["distinct", "sample", "list", "list-best"],
)
def test_what_is_rewarded_becomes_more_frequent(new_run: Callable[[str], Path], more: dict[str, Any]) -> None:
    run = new_run("run")
    steps = {"max_steps": 24, "eval_strategy": "no", "save_strategy": "no", "learning_rate": 3e-3}
    reward = FIRST_KINDS if more["rollout"] == "list" else CHEAP
    grpo.train(*grpo.parse(options(run, rewards=[reward], **{**steps, **more})))
    rewards = list(curve(run, "reward").values())
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.1
    before, after = (load_file(run / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo"))
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def interrupted_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("script", [grpo, dpo], ids=["grpo", "dpo"])
def test_an_interrupted_alignment_ends_like_an_uninterrupted_one(new_run: Callable[[str], Path], script: Any) -> None:
    more = {"recent": 1.0} if script is dpo else {"num_iterations": 2, "beta": 0.05}
    dropped = ("num_generations",) if script is dpo else ()
    runs = [new_run("whole"), new_run("broken")]
    given = [options(run, "grpo", **more) for run in runs]
    for one in given:
        path = Path(one[1])
        lines = [line for line in path.read_text().splitlines() if not line.startswith(dropped or "#")]
        path.write_text("\n".join(lines))
    script.train(*script.parse(given[0]))
    with pytest.raises(KeyboardInterrupt):
        script.train(*script.parse(given[1]), interrupted_at(5))
    steps: list[int] = []
    script.train(*script.parse(given[1]), lambda done, total: steps.append(done))
    assert steps == [5, 6]
    one, other = (load_file(run / "models/grpo/model.safetensors") for run in runs)
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-6)
    assert curve(runs[1], "loss") == pytest.approx(curve(runs[0], "loss"), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_two_processes_have_the_advantages_of_one(new_run: Callable[[str], Path]) -> None:
    """`accelerate launch`, and one process with the same global batch: one curve of rewards and of losses."""
    curves = {}
    for processes in (1, 2):
        run = new_run(f"with_{processes}")
        more = {"per_device_train_batch_size": 16 // processes, "num_iterations": 2, "scale_rewards": "batch"}
        if processes > 1:
            in_two_processes("training/grpo.py", options(run, **more))
        else:
            with threadpool_limits(1):
                grpo.train(*grpo.parse(options(run, **more)))
        curves[processes] = [curve(run, "grad_norm"), curve(run, "eval_ndcg@10")]
    for one, two in zip(*curves.values(), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


def test_a_policy_that_collapses_is_stopped(new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    run = new_run("run")
    more = {"rewards": [CHEAP], "learning_rate": 8e-3, "max_steps": 40, "entropy_floor": 0.7}
    with caplog.at_level(logging.WARNING):
        grpo.train(*grpo.parse(options(run, eval_steps=40, **more)))
    assert "the policy collapses" in caplog.text
    last = max(entry["step"] for entry in log_of(run))
    assert 2 < last < 40
    assert (run / "models/grpo/model.safetensors").exists()
    broken = new_run("broken")  # what it began with is known after an interruption too
    with pytest.raises(KeyboardInterrupt):
        grpo.train(*grpo.parse(options(broken, eval_steps=40, save_steps=1, **more)), interrupted_at(last - 1))
    grpo.train(*grpo.parse(options(broken, eval_steps=40, save_steps=1, **more)))
    assert max(entry["step"] for entry in log_of(broken)) == last


def test_dynamic_sampling_learns_from_searches_with_a_signal(
    new_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    loss = trainers.losses.policy_loss

    def seen(log_prob: Any, *given: Any, **more: Any) -> Any:
        sizes.append(len(log_prob))
        return loss(log_prob, *given, **more)

    monkeypatch.setattr(trainers.losses, "policy_loss", seen)
    run = new_run("run")
    grpo.train(*grpo.parse(options(run, dynamic_sampling=2, max_steps=2, eval_strategy="no", save_strategy="no")))
    assert sizes == [8, 8]


def test_a_reward_without_signal_is_told(new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    run = new_run("run")
    more = {"rewards": [NOTHING], "max_steps": 20, "eval_strategy": "no", "save_strategy": "no"}
    with caplog.at_level(logging.WARNING):
        grpo.train(*grpo.parse(options(run, **more)))
    assert "there is no signal to learn from" in caplog.text
    assert set(curve(run, "frac_reward_zero_std").values()) == {1.0}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_generations": 1}, "num_generations: a group of one has nobody to be compared with"),
        ({"loss_type": "grp"}, r"loss_type: unknown value: 'grp' \(did you mean 'grpo'\?\)"),
        ({"rollout": "sample", "group_weights": "chance"}, "group_weights: independent draws are as frequent"),
        ({"rollout": "none"}, "rollout: nothing to learn"),
        ({"rollout": "keywords"}, "rollout: only a language model says keywords"),
        ({"rollout": "log"}, "nothing was shown in this log"),
        ({"rollout": "list", "advantage": "prefix"}, "advantage: only single items match position by position"),
        ({"save_steps": 3, "num_iterations": 2}, r"save_steps: does not fit num_iterations: 3 \(use a multiple of 2"),
        ({"dynamic_sampling": 3}, "dynamic_sampling: does not divide the batch"),
        ({"loss_type": "gbpo", "importance_sampling_level": "sequence"}, "gbpo bounds each code's ratio"),
        ({"stage": "sft"}, "stage: would overwrite its start"),
        ({"per_device_train_batch_size": 100_000}, "fewer training events than one batch"),
        ({"karma": 0.1}, "karma: the model has no interest head"),
        ({"temperature": 0.0}, "temperature: must be above 0"),
        ({"rewards": ["boughtt"]}, "no such reward: 'boughtt'"),
    ],
)
def test_what_cannot_be(trained_run: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    values = {**TINY, "run": str(trained_run), "stage": "grpo", "output_dir": str(tmp_path / "out"), **more}
    with pytest.raises(UserError, match=message):
        grpo.train(*grpo.parse(["--config", str(write_yaml(tmp_path / "grpo.yaml", values))]))


def test_karmas_losses_are_learnt_beside_the_rewards(quantized_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quantized_run, tmp_path / "run"))
    given = {**SHOP, "run": str(run), "interest": 8, "max_steps": 4, "eval_strategy": "no", "save_strategy": "no"}
    sft.train(*sft.parse(["--config", str(write_yaml(tmp_path / "sft.yaml", given))]))
    grpo.train(*grpo.parse(options(run, karma=0.5, max_steps=4, eval_strategy="no", save_strategy="no")))
    assert all(value > 0 for value in curve(run, "action").values())
    before, after = (load_file(run / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo"))
    assert not np.array_equal(before["interest.head.project.weight"], after["interest.head.project.weight"])


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("rollout", ["distinct", "keywords"])
def test_language_models_are_aligned_too(
    language_run: Callable[[str], Path], tmp_path: Path, family: str, rollout: str
) -> None:
    run = Path(shutil.copytree(language_run(family), tmp_path / "run"))
    more = {"rollout": rollout, "list_length": 3, "num_generations": 3, "keyword_tokens": 4, "beta": 0.01, "sft": 0.1}
    grpo.train(*grpo.parse(options(run, max_steps=3, per_device_train_batch_size=4, save_strategy="no", **more)))
    assert list(curve(run, "ratio").values()) == pytest.approx([1.0] * 3, abs=1e-4)
    assert curve(run, "sft")[1] > 0
    assert curve(run, "kl")[1] == pytest.approx(0, abs=1e-4 if family == "llama" else 1e-2), "BART drops out"
    retriever = Retriever.load(run, "grpo")
    assert read_json(run / "models/grpo/config.json")["normalise"] == "children"
    (answer,) = retriever.search([Request("dog food")], 3)
    assert len(answer.hits) == 3 and answer.mass is None


@pytest.mark.parametrize("rollout", ["distinct", "list"])
def test_ratios_are_exact_in_bfloat16_too(new_run: Callable[[str], Path], rollout: str) -> None:
    run = new_run("run")
    more = {"rollout": rollout, "list_length": 4, "beta": 0.01, "max_steps": 3, "eval_strategy": "no"}
    grpo.train(*grpo.parse(options(run, bf16=True, save_strategy="no", **more)))
    assert list(curve(run, "ratio").values()) == pytest.approx([1.0] * 3, abs=1e-4)
    assert curve(run, "kl")[1] == pytest.approx(0, abs=1e-4)


def test_imitation_alone_needs_no_rollout(new_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same steps as those of rollouts that earn nothing."""
    steps = {"max_steps": 4, "eval_strategy": "no", "save_strategy": "no", "sft": 1.0}
    runs = [new_run("none"), new_run("nothing")]
    monkeypatch.setattr(trainers.GrpoTrainer, "rolled", None)
    grpo.train(*grpo.parse(options(runs[0], rollout="none", **steps)))
    monkeypatch.undo()
    grpo.train(*grpo.parse(options(runs[1], rewards=[NOTHING], **steps)))
    one, other = (load_file(run / "models/grpo/model.safetensors") for run in runs)
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-5)
    assert "frac_reward_zero_std" not in {name for entry in log_of(runs[0]) for name in entry}


def test_some_events_only_are_learnt_from(new_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run("run")
    corpus = Corpus.load(run / "corpus")
    chosen = np.flatnonzero(make_split(corpus) == TRAIN)[::5][:40]
    pl.DataFrame({"event": chosen}).write_parquet(run.parent / "events.parquet")
    seen: list[int] = []
    rolled = trainers.GrpoTrainer.rolled
    monkeypatch.setattr(
        trainers.GrpoTrainer, "rolled", lambda self, events: (seen.extend(events.tolist()), rolled(self, events))[1]
    )
    grpo.train(*grpo.parse(options(run, events=str(run.parent / "events.parquet"), max_steps=4)))
    assert len(seen) == 64 and set(seen) <= set(chosen.tolist())
    with pytest.raises(UserError, match=r"events\.json"):
        grpo.train(*grpo.parse(options(run, events=str(run.parent / "events.json"))))


def test_a_reference_with_another_sid_table(new_run: Callable[[str], Path]) -> None:
    run, other = new_run("run"), new_run("other")
    codes = load_file(other / "sid/codes.safetensors")
    from safetensors.numpy import save_file

    codes["codes"] = codes["codes"][::-1].copy()
    save_file(codes, other / "sid/codes.safetensors")
    with pytest.raises(UserError, match="reference: the reference model has another SID table"):
        grpo.train(*grpo.parse(options(run, beta=0.1, reference=str(other))))


def test_a_small_log_is_aligned_in_smaller_batches(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    config = write_yaml(run.parent / "grpo.yaml", {**TINY, "recent": 0.1, "per_device_train_batch_size": 4096})
    opened = Run.open(run)
    settings = replace(opened.settings, reinforce=True, grpo=str(config))
    grpo.train_run(replace(opened, settings=settings), lambda done, total: None)
    assert (run / "models/grpo/model.safetensors").exists()


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_the_demos_configs_are_valid_and_open_with_their_command(name: str) -> None:
    config = ROOT / f"configs/demo/{name}.yaml"
    (grpo if name == "grpo" else dpo).parse(["--config", str(config)])
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command == f"# accelerate launch training/{name}.py --config {config.relative_to(ROOT)}"
