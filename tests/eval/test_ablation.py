"""Ablations: rows trained alike, compared on the same searches, done once; mistakes told before anything is trained."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_up import TINY, write_yaml

from eval.ablation import Ablation, main, markdown
from eval.trained import Answers
from onesearch.errors import UserError
from onesearch.files import read_json


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
        ("rows: {a: {}}", "nothing to compare"),
        ("rows: {a: {}, b: 3}", "a row is a mapping of options"),
        ("rows: {a b: {}, A-b: {}}", "two rows of one name"),
    ],
)
def test_mistakes_are_told_first(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        Ablation.read(tmp_path / "rows.yaml")
