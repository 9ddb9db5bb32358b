"""Which weights an alignment ends with: never worse ones than it began with."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from alignments import CHEAP, curve, log_of, options
from safetensors.numpy import load_file
from typer.testing import CliRunner

from onesearch.cli import app
from training import grpo
from training.rl.best import standard_error


def test_a_policy_never_ends_below_where_it_began(
    new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Rewards that have nothing to do with what is bought, and a large step: the weights of the start come back."""
    run = new_run("run")
    with caplog.at_level(logging.WARNING):
        grpo.train(*grpo.parse(options(run, rewards=[CHEAP], learning_rate=1e-1)))
    before, after = (load_file(run / f"models/{stage}/model.safetensors") for stage in ("sft", "grpo"))
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    ndcg = curve(run, "eval_ndcg@10")
    assert set(ndcg) == {0, 3, 6} and max(ndcg.values()) == ndcg[0]
    assert log_of(run)[-1]["kept_step"] == 0
    assert "the model is the one it began with" in caplog.text
    assert not list((run / "models/grpo").glob("checkpoint-*")) and not (run / "models/grpo/best").exists()


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


def test_what_chance_explains_is_not_kept(new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    run = new_run("run")
    with caplog.at_level(logging.INFO):
        grpo.train(*grpo.parse(options(run, sft=1.0, max_steps=9, margin=1000.0)))
    assert log_of(run)[-1]["kept_step"] == 0
    assert (
        "is within the noise of the validation" in caplog.text
        or max(curve(run, "eval_ndcg@10").values()) <= (curve(run, "eval_ndcg@10")[0])
    )


def test_what_is_watched_may_be_the_reward(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    more = {"rewards": [CHEAP], "watch": "reward", "max_steps": 12, "margin": 1.0}
    grpo.train(*grpo.parse(options(run, **more)))
    earned, found = curve(run, "eval_reward@10"), curve(run, "eval_ndcg@10")
    kept = log_of(run)[-1]["kept_step"]
    assert earned[kept] > earned[0], "by more than noise"
    assert found[kept] > 0.9 * found[0]


def test_a_reward_that_costs_what_was_bought_is_not_kept(
    new_run: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run("run")
    more = {"rewards": [CHEAP], "watch": "reward", "max_steps": 12, "learning_rate": 1e-2}
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
