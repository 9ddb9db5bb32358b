"""A training in several processes of this machine: the same is learnt, and whatever ends one of them ends all."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from made_up import TINY
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.pipeline import STEPS
from onesearch.run import Run
from onesearch.settings import Settings

NewRun = Callable[[str], Path]
Started = Callable[[], list[psutil.Process]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def started() -> Started:
    """Tell which processes this one has started since: others, as libraries start, may be there from before."""
    before = psutil.Process().children()
    return lambda: [one for one in psutil.Process().children() if one not in before]


def prepared(folder: Path, processes: int, **options: object) -> Run:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(yaml.safe_dump({**TINY, "logging_steps": 1, **options}), encoding="utf-8")
    run = Run.open(folder)
    return replace(run, settings=replace(run.settings, sft=str(path), processes=processes))


@pytest.mark.slow
def test_the_step_learns_the_same_in_two_processes(new_run: NewRun, started: Started) -> None:
    curves = {}
    for processes in (1, 2):
        steps: list[tuple[int, int]] = []
        run = prepared(new_run(f"with_{processes}"), processes)
        with threadpool_limits(1):  # as many as each of two has: item vectors are learnt, and rounding adds up
            STEPS["train"].do(run, lambda done, total: steps.append((done, total)))  # noqa: B023
        log = read_json(run.folder / "models/sft/log_history.json")
        curves[processes] = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
        assert steps == [(step, len(steps)) for step in range(1, len(steps) + 1)] and steps
        assert (run.folder / "models/sft/model.safetensors").exists()
    assert curves[2] == pytest.approx(curves[1], rel=1e-3)
    assert not started()


@pytest.mark.slow
def test_a_mistake_is_told_in_the_words_of_one_process(new_run: NewRun) -> None:
    run = prepared(new_run("large"), 2, per_device_train_batch_size=100_000)
    with pytest.raises(UserError, match=r"fewer training events than one batch.*lower --per_device_train_batch_size"):
        STEPS["train"].do(run, lambda done, total: None)


@pytest.mark.slow
def test_when_one_process_is_killed_the_others_do_not_wait_for_it(new_run: NewRun, started: Started) -> None:
    def kill(done: int, total: int) -> None:
        if done == 2:
            started()[1].kill()

    run = prepared(new_run("killed"), 2, max_steps=100_000)
    with pytest.raises(RuntimeError, match="a process of the training ended with -9"):
        STEPS["train"].do(run, kill)
    assert not started()


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_them(new_run: NewRun) -> None:
    run = prepared(new_run("orphans"), 2, max_steps=100_000)
    call = "train_together('sft', sys.argv[1:], 2, lambda done, total: print(done, flush=True))"
    arguments = ["--config", str(run.settings.sft), "--run", str(run.folder)]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import sys; from training.processes import train_together; {call}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "1\n"
    children = psutil.Process(parent.pid).children()
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 30
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_an_alignment_in_two_processes_says_what_one_says(
    trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.open(Path(shutil.copytree(trained_run, tmp_path / "aligned")))
    path = tmp_path / "grpo.yaml"
    short = {"num_generations": 4, "max_steps": 2, "eval_steps": 1, "valid_requests": 20, "valid_beams": 10}
    batch = {"per_device_train_batch_size": 4, "margin": 1e9}  # no step can be kept
    path.write_text(yaml.safe_dump({**short, **batch}), encoding="utf-8")
    run = replace(run, settings=replace(run.settings, grpo=str(path), reinforce=True, processes=2))
    STEPS["reinforce"].do(run, lambda done, total: None)
    assert "the model is the one it began with" in caplog.text
    weights = [load_file(run.folder / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo")]
    for name, weight in weights[0].items():
        np.testing.assert_array_equal(weights[1][name], weight)


def test_at_least_one_process() -> None:
    with pytest.raises(UserError, match=r"mine.yaml: processes: wrong type or value: 0 .use 1 or more"):
        Settings.of({"processes": 0}, "mine.yaml")
