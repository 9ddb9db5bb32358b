"""Staged fine-tuning of language models: it learns, goes on, stops at what is wrong, and its models answer searches."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from launching import MANY, finished, in_two_processes, started
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits
from tiny_backbones import write_backbone
from transformers import PreTrainedModel
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.model.backbone import load_backbone
from onesearch.run import Run
from training import language, sft
from training.language import parse, train
from training.launch import enough_memory
from training.objective import Objective

ROOT = Path(__file__).parents[2]
NewRun = Callable[[str], Path]

STAGES = [
    {"name": "alignment", "steps": 6, "tasks": {"item-text-to-sid": 2, "item-sid-to-text": 1, "query-text-to-sid": 1}},
    {"name": "co-occurrence", "steps": 4, "tasks": {"query-sid-to-item-sid": 1, "query-to-item-text": 1}},
    {"name": "personalised", "steps": 30, "tasks": {"personalised": 1}},
]
TINY: dict[str, Any] = {
    "model": "language",
    "items": 3,
    "searches": 1,
    "stages": STAGES,
    "valid_requests": 40,
    "valid_searches": 40,
    "beams": 10,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 40,
    "learning_rate": 5.0e-3,
    "warmup_steps": 2,
    "logging_steps": 1,
    "eval_steps": 20,
    "save_steps": 8,
}


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random backbone of a family."""
    base = tmp_path_factory.mktemp("backbones")

    def folder(family: str) -> Path:
        return base / family if (base / family).exists() else write_backbone(base / family, family)

    return folder


def config(folder: Path, run: Path, start: Path, **more: Any) -> list[str]:
    """Arguments that name a YAML of a tiny training."""
    path = folder / f"{run.name}.yaml"
    values = {**TINY, "run": str(run), "backbone": str(start), **more}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return ["--config", str(path)]


def curve(run: Path, name: str = "loss", stage: str = "language") -> dict[int, float]:
    log = read_json(run / f"models/{stage}/log_history.json")
    return {entry["step"]: entry[name] for entry in log if name in entry}


@pytest.mark.parametrize("family", ["bart", "qwen3", "bert"])
@pytest.mark.parametrize("bf16", [False, True])
def test_half_precision_on_a_cpu_does_without_fused_attention(
    family: str,
    bf16: bool,
    new_run: NewRun,
    backbones: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its backward pass takes longer than all the rest there; what is learnt without it is learnt as well."""
    ways: list[str] = []
    set_way = PreTrainedModel.set_attn_implementation

    def recorded(self: PreTrainedModel, way: str, *more: Any, **others: Any) -> None:
        ways.append(way)
        set_way(self, way, *more, **others)

    monkeypatch.setattr(PreTrainedModel, "set_attn_implementation", recorded)
    run = new_run(family)
    sizes = {"decoder_layers": 1, "decoder_heads": 4, "decoder_feed_forward": 32} if family == "bert" else {}
    train(*parse(config(tmp_path, run, backbones(family), bf16=bf16, use_cpu=True, **sizes)))
    assert ("eager" in ways) == bf16
    held_out = curve(run, "eval_loss")
    assert held_out[40] < 0.95 * held_out[0]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("bart", {"tuning": "full", "history": "recent"}),
        ("qwen3", {"tuning": "lora", "lora_rank": 4, "new_rows": "text"}),
        ("bert", {"decoder_layers": 1, "decoder_heads": 4, "decoder_feed_forward": 32, "query_sid": False}),
    ],
)
def test_it_learns_and_its_model_answers_from_the_command_line(
    family: str, more: dict[str, Any], new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    run = new_run(family)
    train(*parse(config(tmp_path, run, backbones(family), **more)))
    held_out = curve(run, "eval_loss")
    assert held_out[40] < 0.95 * held_out[0], "the held-out loss falls"
    assert 0 <= curve(run, "valid_recall@10")[40] <= 1
    names = {path.name for path in (run / "models/language").iterdir()}
    assert {"config.json", "backbone", "log_history.json"} <= names
    assert not [name for name in names if name.startswith(("checkpoint", "."))]

    def ask(*arguments: str) -> dict[str, Any]:
        command = ["generate", "--run", str(run), "--stage", "language", "--query", "cold cereal", "--user", "u3"]
        done = CliRunner().invoke(app, [*command, "--json", "-k", "5", *arguments])
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout))

    free = ask()
    assert len(free["hits"]) == 5 and free["known_user"] and free["given"]
    scores = [hit["score"] for hit in free["hits"]]
    assert scores == sorted(scores, reverse=True)
    filtered = ask("--where", "brand = 'acme'")
    assert [hit["brand"] for hit in filtered["hits"]] == ["acme"] * 5
    by_item = {hit["item_id"]: hit["score"] for hit in filtered["hits"]}
    for hit in free["hits"]:
        if hit["brand"] == "acme":
            assert by_item[hit["item_id"]] == pytest.approx(hit["score"], abs=1e-4), "a filter changes no score"
    denied = ask("--deny", free["hits"][0]["item_id"])
    assert denied["hits"][0]["item_id"] == free["hits"][1]["item_id"]


def test_evaluate_compares_a_stage_with_the_baselines(
    new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    run = new_run("evaluated")
    stages = [{"name": "personalised", "steps": 2, "tasks": {"personalised": 1}}]
    train(*parse(config(tmp_path, run, backbones("bart"), stages=stages, history="none", valid_searches=0)))
    done = CliRunner().invoke(app, ["evaluate", "--run", str(run), "--stage", "language"])
    assert done.exit_code == 0, done.output
    results = read_json(run / "eval/language/recall.json")
    assert {"generator", "bm25", "popularity"} <= set(results["systems"])
    assert not (run / "eval/recall.json").exists()
    missing = CliRunner().invoke(app, ["generate", "--run", str(run), "--stage", "other", "--query", "soap"])
    assert missing.exit_code == 2 and "models/other: no trained generator" in " ".join(missing.output.split())


def test_every_term_of_the_loss_runs_and_changes_what_is_learnt(
    new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    stages = [{"name": "personalised", "steps": 3, "tasks": {"personalised": 1}}]
    short = {"stages": stages, "valid_searches": 0, "dropout": 0.1, "eval_strategy": "no", "eval_on_start": False}
    terms: dict[str, dict[str, Any]] = {
        "plain": {},
        "focal": {"focal_alpha": 2.0, "focal_gamma": 3.0},
        "distillation": {"distillation": 0.1},
        "average": {"distillation": 0.1, "teacher": "average"},
        "r_drop": {"r_drop": 0.5},
        "fgm": {"fgm": 0.6},
    }
    weights = {}
    for name, term in terms.items():
        run = new_run(name)
        train(*parse(config(tmp_path, run, backbones("bart"), **short, **term)))
        weights[name] = load_file(run / "models/language/backbone/model.safetensors")["model.shared.weight"]
        assert np.isfinite(weights[name]).all()
    for name in terms:
        assert name == "plain" or np.abs(weights[name] - weights["plain"]).max() > 1e-6, name


def stop_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        assert total == 40
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    tuning: str, new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    """With an averaged teacher, whose weights are part of what must be gone on with."""
    more = {"tuning": tuning, "distillation": 0.1, "teacher": "average", "valid_searches": 0, "history": "recent"}
    whole, broken = new_run("whole"), new_run("broken")
    train(*parse(config(tmp_path, whole, backbones("llama-untied"), **more)))
    arguments = config(tmp_path, broken, backbones("llama-untied"), **more)
    with pytest.raises(KeyboardInterrupt):
        train(*parse(arguments), stop_at(13))
    assert [path.name for path in (broken / "models/language").glob("checkpoint-*")] == ["checkpoint-8"]
    steps: list[int] = []
    train(*parse(arguments), lambda done, total: steps.append(done))
    assert steps == list(range(9, 41)), "it went on after the checkpoint"
    assert curve(broken) == pytest.approx(curve(whole), rel=1e-5)
    one, other = (load_file(run / "models/language/backbone/model.safetensors") for run in (whole, broken))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-5)


FSDP = ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP += ["--fsdp_state_dict_type", "FULL_STATE_DICT", "--fsdp_transformer_layer_cls_to_wrap"]
LOADED_BY_ALL = ["--fsdp_cpu_ram_efficient_loading", "false"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "many"),
    [
        ("bart", MANY),
        ("bart", [*FSDP, "BartEncoderLayer,BartDecoderLayer", *LOADED_BY_ALL]),
        ("qwen3", [*FSDP, "Qwen3DecoderLayer"]),
    ],
    ids=["bart ddp", "bart fsdp", "qwen3 fsdp"],
)
def test_two_processes_learn_what_one_learns(
    family: str, many: Sequence[str], new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    """Each with all weights (DDP) or a part of them (FSDP, as on GPUs)."""
    stages = [
        {"name": "alignment", "steps": 3, "tasks": {"item-text-to-sid": 1, "item-sid-to-text": 1}},
        {"name": "personalised", "steps": 5, "tasks": {"personalised": 1}},
    ]
    more = {"stages": stages, "history": "recent", "dropout": 0.0, "valid_searches": 0, "eval_steps": 8}
    curves, weights = {}, {}
    for processes in (1, 2):
        run = new_run(f"with_{processes}")
        sizes = {"per_device_train_batch_size": 16 // processes, "per_device_eval_batch_size": 40 // processes}
        arguments = config(tmp_path, run, backbones(family), **more, **sizes)
        if processes > 1:
            in_two_processes("training/sft.py" if many is MANY else "tests/training/sharded_on_cpu.py", arguments, many)
        else:
            with threadpool_limits(1):
                language.train(*language.parse(arguments))
        curves[processes] = curve(run) | {-1: curve(run, "eval_loss")[8]}
        weights[processes] = load_file(run / "models/language/backbone/model.safetensors")
    assert len(curves[1]) == 9
    assert curves[2] == pytest.approx(curves[1], rel=1e-3)
    assert weights[1].keys() == weights[2].keys()
    for name, weight in weights[1].items():
        np.testing.assert_allclose(weights[2][name], weight, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"fgm": 0.6}, r"fgm: not with FSDP: 0.6 .*--multi_gpu"),
        ({"tuning": "lora"}, r"tuning: not with FSDP"),
        ({"distillation": 0.1, "teacher": "average"}, r"teacher: not with FSDP"),
        ({}, r"cannot send model.final_logits_bias.*launch with --fsdp_cpu_ram_efficient_loading false"),
    ],
)
def test_what_cannot_be_trained_in_shares_is_said_before_it_begins(
    more: dict[str, Any], message: str, backbones: Callable[[str], Path]
) -> None:
    options = language.LanguageArguments(**more)
    objective = Objective(load_backbone(str(backbones("bart")))[0], [], [], language._terms(options))
    with pytest.raises(UserError, match=message):
        language.check_sharded(options, objective, load_once=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["language", "generator"])
def test_a_killed_training_ends_like_an_uninterrupted_one(
    kind: str, new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    """SIGKILL: nothing is tidied up, and the lock is free again."""
    from made_up import TINY as GENERATOR

    found = {}
    for name in ("whole", "killed"):
        run = new_run(name)
        if kind == "language":
            arguments = config(tmp_path, run, backbones("llama"), valid_searches=0, history="recent", save_steps=5)
            weights = "models/language/backbone/model.safetensors"
        else:
            path = tmp_path / f"{name}.yaml"
            short = {"max_steps": 40, "save_steps": 5, "eval_steps": 100, "logging_steps": 1}
            path.write_text(yaml.safe_dump({**GENERATOR, "run": str(run), **short}), encoding="utf-8")
            arguments, weights = ["--config", str(path)], "models/sft/model.safetensors"
        if name == "killed":
            process = started("training/sft.py", arguments)
            deadline = time.monotonic() + 120
            while not list(run.glob("models/*/checkpoint-*/trainer_state.json")):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            process.kill()
            process.communicate()
            assert not (run / weights).exists(), "it was killed before its end"
            finished(started("training/sft.py", arguments))
        else:
            with threadpool_limits(1):
                learn, *given = sft.training_of(arguments)
                learn(*given)
        found[name] = load_file(run / weights)
    for name, weight in found["whole"].items():
        np.testing.assert_allclose(found["killed"][name], weight, atol=1e-5)


@pytest.mark.parametrize("family", ["bart", "generator"])
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(
    family: str, new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenth batch meets a weight that is broken."""
    run = new_run("nan")

    def broken(done: int, total: int) -> None:
        if done == 9:
            with torch.no_grad():
                learnt[-1].fill_(torch.nan)

    learnt: list[torch.Tensor] = []
    if family == "generator":
        from test_sft import options

        from onesearch.model import Generator

        keep_parameters(monkeypatch, Generator, learnt)
        arguments = sft.parse(options(run, max_steps=20, save_steps=4, eval_steps=100))
        folder: Any = run / "models/sft"
        with pytest.raises(UserError) as told:
            sft.train(*arguments, broken)
    else:
        keep_parameters(monkeypatch, language.Objective, learnt)
        folder = run / "models/language"
        with pytest.raises(UserError) as told:
            train(*parse(config(tmp_path, run, backbones(family), save_steps=4, history="none")), broken)
    message = str(told.value)
    assert message.startswith("batch 10: ") and "is not a finite number: nan" in message
    assert "lower --learning_rate" in message and str(folder / "checkpoint-8") in message
    kept = load_file(folder / "checkpoint-8/model.safetensors")
    assert all(np.isfinite(weight).all() for weight in kept.values())


def keep_parameters(monkeypatch: pytest.MonkeyPatch, kind: Any, learnt: list[torch.Tensor]) -> None:
    """Let the test reach the weights of what is trained."""
    start = kind.__init__

    def remembered(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        learnt[:] = [one for one in self.parameters() if one.ndim > 1]

    monkeypatch.setattr(kind, "__init__", remembered)


def test_two_trainings_do_not_write_one_run(
    quantized_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("language", "generator"):
        monkeypatch.setattr(sys, "argv", ["sft.py", "--model", model, "--run", str(quantized_run)])
        with Run.open(quantized_run).lock(), pytest.raises(SystemExit) as stopped:
            sft.main()
        assert stopped.value.code == 2
        assert f"process {os.getpid()} is writing this run" in capsys.readouterr().err


def test_out_of_memory_says_what_takes_less() -> None:
    with pytest.raises(UserError, match=r"out of memory \(halve --per_device_train_batch_size"), enough_memory():
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="something else"), enough_memory():
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"history": "recnt"}, r"history: unknown value: 'recnt' \(did you mean 'recent'\?\)"),
        ({"tuning": "adapter"}, r"tuning: unknown value: 'adapter'"),
        ({"new_rows": "codebok"}, r"did you mean 'codebook'"),
        ({"teacher": "both"}, r"teacher: unknown value: 'both'"),
        (
            {"stages": [{"steps": 1, "tasks": {"item-text-to-sids": 1}}]},
            r"stages: stage 1: unknown task: 'item-text-to-sids' \(did you mean 'item-text-to-sid'\?\)",
        ),
        ({"stages": [{"steps": 0, "tasks": {"personalised": 1}}]}, r"a stage needs steps, 1 or more: 0"),
        ({"stages": [{"steps": 1, "task": {"personalised": 1}}]}, r"unknown key: 'task' \(did you mean 'tasks'\?\)"),
        ({"stages": [{"steps": 1, "tasks": {"personalised": -1}}]}, r"personalised: a weight is a number above 0"),
        (
            {"stages": [{"name": "first", "steps": 1, "tasks": {"item-sid-to-category": 1}}]},
            r"stage first: task item-sid-to-category: the corpus has no values in: 'items.categories'",
        ),
        ({"backbone": "no-such-model"}, r"backbone: cannot load this backbone.*'no-such-model'"),
        ({"decoder_layers": 1, "tuning": "lora"}, r"tuning: a text encoder with a new decoder has no adapters"),
    ],
)
def test_a_mistake_in_the_yaml_is_told_with_its_place(
    more: dict[str, Any], message: str, quantized_run: Path, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    family = "bert" if "decoder_layers" in more else "bart"
    sizes = {"decoder_heads": 4, "output_dir": str(tmp_path / "out")}
    with pytest.raises(UserError, match=message):
        train(*parse(config(tmp_path, quantized_run, backbones(family), **{"history": "none", **sizes, **more})))


def test_a_model_of_other_semantic_ids_is_told(
    new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    from onesearch.retriever import Retriever
    from onesearch.sid import SidTable

    run = new_run("other")
    stages = [{"steps": 1, "tasks": {"personalised": 1}}]
    train(*parse(config(tmp_path, run, backbones("llama"), stages=stages, history="none", valid_searches=0)))
    Retriever.load(run, "language")
    table = SidTable.load(run / "sid")
    other = SidTable(table.item_ids, table.codes[::-1].copy(), table.level_sizes, table.order)
    other.save(run / "sid")
    with pytest.raises(UserError, match=r"config.json: the SID table gives items other semantic IDs .*train it again"):
        Retriever.load(run, "language")
    SidTable(table.item_ids, table.codes, (*table.level_sizes[:-1], 9), table.order).save(run / "sid")
    with pytest.raises(UserError, match=r"trained with levels of \[6, 6, 8\] codes, the SID table has: \[6, 6, 9\]"):
        Retriever.load(run, "language")
    table.save(run / "sid")
    from tiny_backbones import tokenizer

    tokenizer().save_pretrained(run / "models/language/backbone")
    with pytest.raises(UserError, match=r"a tokenizer without the SID tokens, the first: '<a_0>'"):
        Retriever.load(run, "language")


def test_onesearch_train_takes_a_yaml_of_a_language_model(
    new_run: NewRun, backbones: Callable[[str], Path], tmp_path: Path
) -> None:
    from dataclasses import replace

    run = new_run("step")
    stages = [{"steps": 2, "tasks": {"personalised": 1}}]
    _, path = config(tmp_path, run, backbones("llama"), stages=stages, history="none", valid_searches=0)
    Run.create(run, replace(Run.open(run).settings, sft=path))
    done = CliRunner().invoke(app, ["train", "--run", str(run)])
    assert done.exit_code == 0, done.output
    assert read_json(run / "models/sft/config.json")["model_type"] == "onesearch-language"
    done = CliRunner().invoke(app, ["generate", "--run", str(run), "--query", "soap", "--json"])
    assert done.exit_code == 0 and len(json.loads(done.stdout)["hits"]) == 10
