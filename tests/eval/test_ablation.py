"""Ablations: rows trained alike, compared on the same searches, done once; mistakes told before anything is trained."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from made_up import TINY, write_yaml

from eval.ablation import Ablation, main
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
