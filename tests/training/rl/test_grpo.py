"""Alignment end to end: it learns what is rewarded, never ends below its start, goes on, and stops at what is wrong."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from launching import in_two_processes
from made_up import TINY as SHOP
from made_up import write_yaml
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.retriever import Request, Retriever
from onesearch.run import Run
from training import dpo, evolve, grpo, sft
from training.rl import trainer as trainers
from training.rl.best import standard_error

ROOT = Path(__file__).parents[3]
TINY: dict[str, Any] = {
    "recent": 1.0,
    "num_generations": 6,
    "per_device_train_batch_size": 16,
    "learning_rate": 1.0e-3,
    "max_steps": 6,
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "valid_requests": 30,
    "valid_beams": 10,
    "margin": 0.0,
}


@pytest.fixture
def new_run(trained_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Make a copy of the run with a trained generator, under this name."""
    return lambda name: Path(shutil.copytree(trained_run, tmp_path / name))


def options(run: Path, stage: str = "grpo", **more: Any) -> list[str]:
    values = {**TINY, "run": str(run), "stage": stage, **more}
    return ["--config", str(write_yaml(run.parent / f"{run.name}-{stage}.yaml", values))]


def log_of(run: Path, stage: str = "grpo") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(run / f"models/{stage}/log_history.json")
    return found


def curve(run: Path, name: str, stage: str = "grpo") -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in log_of(run, stage) if name in entry}


def cheap(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that the log knows nothing of: items with an even number."""
    return [float(item % 2 == 0) for item in columns["item"]]


def first_kinds(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
) -> list[float]:
    """The same for half of the shop's kinds, which first codes tell apart."""
    return [float(item < 24) for item in columns["item"]]


def nothing(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [0.0] * len(prompts)


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
    reward = f"{__name__}:{'first_kinds' if more['rollout'] == 'list' else 'cheap'}"
    grpo.train(*grpo.parse(options(run, rewards=[reward], **{**steps, **more})))
    rewards = list(curve(run, "reward").values())
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.1
    before, after = (load_file(run / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo"))
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_policy_never_ends_below_where_it_began(
    new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards that have nothing to do with what is bought, and a large step: the weights of the start come back."""
    run = new_run("run")
    with caplog.at_level(logging.WARNING):
        grpo.train(*grpo.parse(options(run, rewards=[f"{__name__}:cheap"], learning_rate=1e-1)))
    before, after = (load_file(run / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo"))
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    ndcg = curve(run, "eval_ndcg@10")
    assert set(ndcg) == {0, 3, 6} and max(ndcg.values()) == ndcg[0]
    assert log_of(run)[-1]["kept_step"] == 0
    assert "the model is the one it began with" in caplog.text
    assert not list((run / "models/grpo").glob("checkpoint-*")) and not (run / "models/grpo/best").exists()


def test_what_chance_explains_is_not_kept(new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    run = new_run("run")
    with caplog.at_level(logging.INFO):
        grpo.train(*grpo.parse(options(run, sft=1.0, max_steps=9, margin=1000.0)))
    assert log_of(run)[-1]["kept_step"] == 0
    assert (
        "is within the noise of the validation" in caplog.text
        or max(curve(run, "eval_ndcg@10").values()) <= (curve(run, "eval_ndcg@10")[0])
    )


def even(item: Any, **_: Any) -> Any:
    """A reward that has nothing to do with what was bought."""
    return (item % 2 == 0).astype(float)


def test_what_is_watched_may_be_the_reward(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    more = {"rewards": [f"{__name__}:even"], "watch": "reward", "max_steps": 12, "margin": 1.0}
    grpo.train(*grpo.parse(options(run, **more)))
    earned, found = curve(run, "eval_reward@10"), curve(run, "eval_ndcg@10")
    kept = log_of(run)[-1]["kept_step"]
    assert earned[kept] > earned[0], "by more than noise"
    assert found[kept] > 0.9 * found[0]


def test_a_reward_that_costs_what_was_bought_is_not_kept(
    new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run("run")
    more = {"rewards": [f"{__name__}:even"], "watch": "reward", "max_steps": 12, "learning_rate": 1e-2}
    with caplog.at_level(logging.INFO):
        grpo.train(*grpo.parse(options(run, **more)))
    assert max(curve(run, "eval_reward@10").values()) > curve(run, "eval_reward@10")[0] + 0.1
    assert log_of(run)[-1]["kept_step"] == 0
    assert re.search(r"\+\S+ reward@10 cost \S+ NDCG@10, which is more than noise", caplog.text)


def test_users_not_searches_are_independent() -> None:
    """Two users with all their searches alike: the error of a mean of two, however many searches there are."""
    values, user = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0]), np.array([4, 4, 4, 9, 9, 9])
    assert standard_error(values, user) == pytest.approx(np.sqrt(2 * 1.5**2) / 6)
    assert standard_error(values, np.arange(6)) == pytest.approx(np.sqrt(6 * 0.25) / 6)


def test_the_best_validation_is_kept_and_answers_searches(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    grpo.train(*grpo.parse(options(run, sft=1.0, max_steps=9, patience=2)))
    ndcg = curve(run, "eval_ndcg@10")
    kept = log_of(run)[-1]["kept_step"]
    assert ndcg[kept] == max(ndcg.values())
    assert curve(run, "sft") and curve(run, "entropy") and curve(run, "frac_reward_zero_std")
    answer = CliRunner().invoke(
        app, ["generate", "--run", str(run), "--stage", "grpo", "--query", "dog food", "-k", "3"]
    )
    assert answer.exit_code == 0 and "dog food" in answer.output


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
    more = {"rewards": [f"{__name__}:cheap"], "learning_rate": 8e-3, "max_steps": 40, "entropy_floor": 0.7}
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
    more = {"rewards": [f"{__name__}:nothing"], "max_steps": 20, "eval_strategy": "no", "save_strategy": "no"}
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
    grpo.train(*grpo.parse(options(runs[1], rewards=[f"{__name__}:nothing"], **steps)))
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


def test_the_loop_learns_from_failures_and_then_from_what_was_solved(
    new_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run("run")
    more = {"max_steps": 20, "per_device_train_batch_size": 4, "eval_strategy": "no", "save_strategy": "no"}
    arguments = options(run, sft=0.3, **more)
    told = evolve.evolve(arguments, rounds=2, sample=200, k=1)
    assert len(told) == 2
    for one in told:
        assert 0 < one["failed"] < one["looked at"] == 200 and 0 < one["solved"] <= one["failed"]
        assert one["solved"] < one["learnt"] <= 2 * one["solved"]
    for number in (1, 2):
        assert (run / f"models/evolve-{number}/model.safetensors").exists()
        failed = set(pl.read_parquet(run / f"models/evolve-{number}-policy.parquet")["event"])
        assert len(failed) == told[number - 1]["failed"]


def test_a_round_that_solves_nothing_ends_the_loop(
    new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run("run")
    arguments = options(run, rewards=[f"{__name__}:nothing"], max_steps=2, per_device_train_batch_size=4)
    with caplog.at_level(logging.WARNING):
        (told,) = evolve.evolve(arguments, rounds=2, sample=200, k=1)
    assert told["solved"] == 0 and "the loop ends with stage sft" in caplog.text
    assert not (run / "models/evolve-1").exists()


def test_a_reference_with_another_sid_table(new_run: Callable[[str], Path]) -> None:
    run, other = new_run("run"), new_run("other")
    codes = load_file(other / "sid/codes.safetensors")
    from safetensors.numpy import save_file

    codes["codes"] = codes["codes"][::-1].copy()
    save_file(codes, other / "sid/codes.safetensors")
    with pytest.raises(UserError, match="reference: the reference model has another SID table"):
        grpo.train(*grpo.parse(options(run, beta=0.1, reference=str(other))))


def test_dpo_prefers_what_was_bought(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    values = {name: value for name, value in TINY.items() if name != "num_generations"}
    values |= {"run": str(run), "max_steps": 24, "eval_strategy": "no", "save_strategy": "no", "losers": 4, "sft": 0.1}
    dpo.train(*dpo.parse(["--config", str(write_yaml(run.parent / "dpo.yaml", values))]))
    margin = list(curve(run, "margin", "dpo").values())
    assert margin[0] == pytest.approx(0, abs=1e-4) and np.mean(margin[-4:]) > 0.1
    assert Retriever.load(run, "dpo").reader is not None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lists": "nowhere"}, "lists: unknown value: 'nowhere'"),
        ({"losers": 0}, "losers: must be 1 or more: 0"),
        ({"beta": 0.0}, "beta: must be above 0"),
        ({"lists": "log"}, "nothing was shown in this log"),
    ],
)
def test_what_dpo_cannot(trained_run: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    values = {name: value for name, value in TINY.items() if name != "num_generations"}
    values |= {"run": str(trained_run), "output_dir": str(tmp_path / "out"), **more}
    with pytest.raises(UserError, match=message):
        dpo.train(*dpo.parse(["--config", str(write_yaml(tmp_path / "dpo.yaml", values))]))


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
