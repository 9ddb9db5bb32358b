"""The loop that learns from failures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from alignments import NOTHING, options

from training import evolve


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
    arguments = options(run, rewards=[NOTHING], max_steps=2, per_device_train_batch_size=4)
    with caplog.at_level(logging.WARNING):
        (told,) = evolve.evolve(arguments, rounds=2, sample=200, k=1)
    assert told["solved"] == 0 and "the loop ends with stage sft" in caplog.text
    assert not (run / "models/evolve-1").exists()
