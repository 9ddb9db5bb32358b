"""Supervised training: it learns, goes on after an interruption, and takes its options from YAML and command line."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import in_two_processes
from made_up import TINY, write_yaml
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.files import read_json
from training.sft import ModelArguments, SftArguments, main, parse, periods, train

ROOT = Path(__file__).parents[2]
NewRun = Callable[[str], Path]


def options(run: Path, **more: Any) -> list[str]:
    """Command line options of a tiny training."""
    values = {"run": run, **TINY, **more}
    return [
        part
        for name, value in values.items()
        for part in (f"--{name}", *(str(one) for one in (value if isinstance(value, list) else [value])))
    ]


def curve(run: Path, name: str = "loss") -> dict[int, float]:
    """A logged value by step."""
    log = read_json(run / "models/sft/log_history.json")
    return {entry["step"]: entry[name] for entry in log if name in entry}


def test_the_loss_falls_on_training_and_on_held_out_events(trained_run: Path) -> None:
    losses, held_out = curve(trained_run), curve(trained_run, "eval_loss")
    assert len(losses) >= 8 and len(held_out) >= 2
    assert np.isfinite([*losses.values(), *held_out.values()]).all()
    ordered = list(losses.values())
    assert np.mean(ordered[-3:]) < 0.8 * ordered[0]
    assert min(held_out.values()) < ordered[0]


def test_it_leaves_a_model_and_no_checkpoints(trained_run: Path) -> None:
    names = {path.name for path in (trained_run / "models/sft").iterdir()}
    assert {"config.json", "model.safetensors", "context.json", "log_history.json", "tokenizer.model"} <= names
    assert not [name for name in names if name.startswith(("checkpoint-", "."))]


def test_no_event_beside_or_after_those_to_learn_from_counts_as_before(
    quantized_run: Path,
) -> None:
    corpus = Corpus.load(quantized_run / "corpus")
    kind = np.where(np.arange(len(corpus.kind)) % 3 == 0, EVENT_KINDS.index("click"), EVENT_KINDS.index("purchase"))
    corpus, split = replace(corpus, kind=kind.astype(corpus.kind.dtype)), make_split(corpus)
    events, before = periods(corpus, split, 0.6)
    assert len(events) and len(before)
    assert (kind[events] == EVENT_KINDS.index("purchase")).all() and set(kind[before]) == set(kind)
    assert corpus.time[before].max() < corpus.time[events].min()
    assert (split[np.concatenate([events, before])] == TRAIN).all()
    assert not len(periods(corpus, split, 1.0)[1])


def test_bfloat16_learns_what_float32_learns(new_run: NewRun) -> None:
    """Items differ by sums over thousands of others, which bfloat16 could not tell apart."""
    more = {"interest": 16, "generate": 0.1, "reconstruct": 0.1}
    runs = [new_run(name) for name in ("exact", "short")]
    for run, bf16 in zip(runs, (False, True), strict=True):
        train(*parse(options(run, bf16=bf16, views=["queries", "long", "uid"], valid_requests=20, **more)))
    exact, short = (np.array(list(curve(run).values())) for run in runs)
    assert short[-1] < 0.8 * short[0]
    np.testing.assert_allclose(short, exact, rtol=0.03)
    weights = load_file(runs[1] / "models/sft/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}


def interrupted_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        assert total == 20
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_training_ends_like_an_uninterrupted_one(new_run: NewRun) -> None:
    short = {"max_steps": 20, "save_steps": 8, "eval_steps": 10, "logging_steps": 1}
    whole, broken = new_run("whole"), new_run("broken")
    train(*parse(options(whole, **short)))
    with pytest.raises(KeyboardInterrupt):
        train(*parse(options(broken, **short)), interrupted_at(13))
    assert [path.name for path in (broken / "models/sft").glob("checkpoint-*")] == ["checkpoint-8"]
    steps: list[int] = []
    train(*parse(options(broken, **short)), lambda done, total: steps.append(done))
    assert steps == list(range(9, 21)), "it went on after the checkpoint"
    assert curve(broken) == pytest.approx(curve(whole), rel=1e-5)
    one, other = (load_file(run / "models/sft/model.safetensors") for run in (whole, broken))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-5)
    assert not list((broken / "models/sft").glob("checkpoint-*"))


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(new_run: NewRun) -> None:
    run = new_run("run")
    short = {"max_steps": 20, "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(*parse(options(run, **short)), interrupted_at(3))
    steps: list[int] = []
    train(*parse(options(run, **short, learning_rate=1e-4)), lambda done, total: steps.append(done))
    assert steps[0] == 1


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(new_run: NewRun) -> None:
    """`accelerate launch`, and one process with the same global batch: one loss curve."""
    short = {"max_steps": 8, "logging_steps": 1, "eval_steps": 8}
    curves = {}
    for processes in (1, 2):
        run = new_run(f"with_{processes}")
        arguments = options(
            run, **short, per_device_train_batch_size=32 // processes, per_device_eval_batch_size=40 // processes
        )
        if processes > 1:
            in_two_processes("training/sft.py", arguments)
        else:
            with threadpool_limits(1):
                train(*parse(arguments))
        curves[processes] = curve(run) | {-1: curve(run, "eval_loss")[8]}
    assert len(curves[1]) == 9
    assert curves[2] == pytest.approx(curves[1], rel=1e-3)
    assert curves[1][8] < curves[1][1]


def test_an_option_that_does_not_exist_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "sft.yaml", {"run": "nowhere", "learning_rat": 1e-3})
    monkeypatch.setattr(sys, "argv", ["sft.py", "--config", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"onesearch: {config}: unknown option: 'learning_rat' (did you mean 'learning_rate'?)"


def test_a_run_that_does_not_exist_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sft.py", "--run", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no run here" in line


def test_more_than_the_log_holds_in_a_batch_says_what_to_lower(quantized_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer training events than one batch.*lower --per_device_train_batch_size"):
        train(*parse(options(quantized_run, per_device_train_batch_size=100_000, output_dir=tmp_path)))


def test_the_command_line_counts_more_than_the_yaml_and_the_yaml_more_than_the_defaults(tmp_path: Path) -> None:
    config = write_yaml(tmp_path / "sft.yaml", {"learning_rate": 1e-3, "width": 64, "layers": [3, 1]})
    model, args = parse(["--config", str(config), "--learning_rate", "3e-4"])
    assert (args.learning_rate, model.width, model.layers) == (3e-4, 64, [3, 1])
    plain_model, plain = parse([])
    assert (plain.learning_rate, plain_model.width) == (SftArguments.learning_rate, ModelArguments().width)


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/demo/sft*.yaml")), ids=lambda path: path.parent.name)
def test_every_config_is_valid_and_opens_with_its_command(config: Path) -> None:
    parse(["--config", str(config)])
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command == f"# accelerate launch training/sft.py --config {config.relative_to(ROOT)}"


def test_help_lists_our_options_and_those_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--slots" in text and "--learning_rate" in text and "accelerate launch" in text


def test_the_log_is_json_that_the_report_can_draw(trained_run: Path) -> None:
    log = json.loads((trained_run / "models/sft/log_history.json").read_text())
    assert all("step" in entry for entry in log)
    assert any("eval_loss" in entry for entry in log)
