"""Ablations: rows trained alike, compared on the same searches, done once; mistakes told before anything is trained."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from made_up import TINY, write_yaml
from tiny_backbones import write_backbone

from eval.ablation import Ablation, main, markdown
from eval.trained import Answers
from onesearch.errors import UserError
from onesearch.files import read_json, read_yaml


def test_rows_differ_in_their_options_and_are_trained_once(
    new_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = new_run("mine"), tmp_path / "out"
    base = write_yaml(tmp_path / "tiny.yaml", TINY)
    config = tmp_path / "rows.yaml"
    config.write_text(
        f"base: {base}\nseeds: [3, 4]\noptions: {{max_steps: 6, warmup_steps: 1}}\n"
        "rows:\n  all paths: {}\n  no copies: {copy: false, layers: [1, 1]}\n"
    )
    arguments = ["--run", str(run), "--config", str(config), "--output", str(out)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 seeds" in shown and "| no copies |" in shown
    found = read_json(out / "ablation.json")["rows"]
    assert found["all paths"]["differences"] == {} and found["no copies"]["options"]["copy"] is False
    means = [found[name]["mrr@10"]["mean"] for name in ("all paths", "no copies")]
    assert found["no copies"]["differences"]["mrr@10"]["mean"] == pytest.approx(means[1] - means[0])
    assert read_json(out / "runs/no-copies-seed-4/models/sft/config.json")["copy"] is False
    assert "no copies" in "".join(ET.parse(out / "ablation.svg").getroot().itertext())
    models = sorted(out.glob("runs/*/models/sft/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in models]
    assert len(before) == 4 and main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == found
    assert [path.stat().st_mtime_ns for path in models] == before
    assert not (run / "models").exists()


def test_language_models_differ_in_stages_and_loss(
    new_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = new_run("language"), tmp_path / "rows.yaml"
    personalised = [{"name": "personalised", "steps": 4, "tasks": {"personalised": 1}}]
    staged = [{"name": "alignment", "steps": 2, "tasks": {"item-text-to-sid": 1}}, {**personalised[0], "steps": 2}]
    shared = {
        "model": "language",
        "backbone": str(write_backbone(tmp_path / "bart", "bart")),
        "stages": personalised,
        "eval_strategy": "no",
        "eval_on_start": False,
        "valid_searches": 0,
        "per_device_train_batch_size": 8,
    }
    rows = {"plain": {}, "staged": {"stages": staged, "distillation": 0.1}, "no history": {"history": "none"}}
    config.write_text(yaml.safe_dump({"searches": 5, "beams": 4, "options": shared, "rows": rows}, sort_keys=False))
    out = tmp_path / "out"
    assert main(["--run", str(run), "--config", str(config), "--output", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert list(found) == list(rows) and all(row["searches"] == 5 for row in found.values())
    folder = out / "runs/staged-seed-7"
    assert read_json(folder / "models/sft/config.json")["model_type"] == "onesearch-language"
    assert read_yaml(folder / "training.yaml")["distillation"] == 0.1
    steps = {
        name: max(one["step"] for one in read_json(place / "models/sft/log_history.json"))
        for name in ("plain", "staged")
        for place in [out / f"runs/{name}-seed-7"]
    }
    assert steps == {"plain": 4, "staged": 4}
    assert read_json(out / "runs/no-history-seed-7/models/sft/config.json")["prompt"]["history"] == "none"


def test_a_row_that_cannot_be_trained_is_told_before_the_first_one_is(
    new_run: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = new_run("wrong"), tmp_path / "rows.yaml"
    stages = "[{name: one, steps: 1, tasks: {personalized: 1}}]"
    config.write_text(f"options: {{model: language}}\nrows: {{fine: {{}}, other: {{stages: {stages}}}}}\n")
    assert main(["--run", str(run), "--config", str(config), "--output", str(tmp_path / "out")]) == 2
    assert "other: stages: stage 1: unknown task: 'personalized' (did you mean" in capsys.readouterr().err
    assert not list(tmp_path.glob("out/runs/*/models/sft"))


def test_interest_is_compared_where_both_rows_have_it() -> None:
    generated = {"mrr@10": np.array([1.0, 0.5, 0, 0]), "recall@10": np.array([1.0, 1, 0, 0])}
    near = {"interest mrr@10": np.array([0.5, 0, 0, 0]), "interest recall@200": np.array([1.0, 1, 1, 0])}
    better = near | {"interest recall@200": np.ones(4)}
    rows = {"first": generated | near, "better": generated | better, "without": generated}
    found = {name: Answers(values, {}, np.arange(4, dtype=np.int32), seconds=1.0) for name, values in rows.items()}
    summaries = {name: one.summary(found["first"], seed=0) for name, one in found.items()}
    assert summaries["better"]["differences"]["interest recall@200"]["mean"] == pytest.approx(0.25)
    assert set(summaries["without"]["differences"]) == {"mrr@10", "recall@10"}
    head, _, first, better_row, without = markdown({"seeds": [7], "rows": summaries}).splitlines()[2:]
    assert "| interest MRR@10 | difference | interest Recall@200 | difference |" in head
    assert "| .750 |" in first and "| 1.000 |" in better_row
    assert without.endswith("|  |  |  |  | 1 |"), "empty where it has no interest vector"
    plain = markdown({"seeds": [7], "rows": {"first": found["without"].summary(found["without"], seed=0)}})
    assert "interest" not in plain


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rows: {a: {}, b: {copi: false}}", "b: unknown option: 'copi'"),
        ("row: {a: {}}", "unknown key: 'row'"),
        ("options: {model: language}\nrows: {a: {}, b: {views: [uid]}}", "b: unknown option: 'views'"),
        ("beams: many\nrows: {a: {}, b: {}}", "beams: a number of 1 or more: 'many'"),
        ("rows: {a: {}}", "nothing to compare"),
        ("rows: {a: {}, b: 3}", "a row is a mapping of options"),
        ("rows: {a b: {}, A-b: {}}", "two rows of one name"),
    ],
)
def test_mistakes_are_told_first(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        Ablation.read(tmp_path / "rows.yaml")
