"""The table of alignments: every row from one start, measured on the same searches, and nothing done twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_up import write_yaml

from eval.alignment import main
from onesearch.files import read_json

SHARED: dict[str, Any] = {
    "recent": 1.0,
    "per_device_train_batch_size": 16,
    "max_steps": 4,
    "eval_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "valid_requests": 20,
    "valid_beams": 10,
    "margin": 0.0,
}
ROWS: dict[str, Any] = {
    "+ DPO": {"script": "dpo", "losers": 3},
    "+ GRPO": {"script": "grpo", "learning_rate": 1e-3},
    "+ list": {"script": "grpo", "rollout": "list", "list_length": 5},
}


def test_rows_are_compared_with_their_start(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    config = write_yaml(
        tmp_path / "alignment.yaml",
        {"seeds": [7, 8], "options": SHARED, "only_for": {"grpo": {"num_generations": 4}}, "rows": ROWS},
    )
    arguments = ["--run", str(run), "--config", str(config), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["rows"]) == ["sft", *ROWS]
    start = found["rows"]["sft"]["metrics"]["ndcg@10"]["mean"]
    for name in ROWS:
        row = found["rows"][name]
        assert row["differences"]["ndcg@10"]["mean"] == pytest.approx(row["metrics"]["ndcg@10"]["mean"] - start)
        assert len(row["of_seeds"]["mrr@10"]) == 2 and all(step in (0, 2, 4) for step in row["kept_steps"])
        assert row["seconds"] > 0 and row["distance"] >= -1e-3
    assert found["rows"]["+ list"]["agreement"] == pytest.approx(1), "a rank-weighted list reward is an NDCG"
    assert -1 <= found["rows"]["+ GRPO"]["agreement"] < 1
    assert 0 <= found["rows"]["+ GRPO"]["no_signal"] <= 1
    table = (run / "eval/alignment/alignment/alignment.md").read_text()
    assert table.count("\n| +") == 3
    monkeypatch.setattr("eval.alignment.SCRIPTS", dict.fromkeys(("grpo", "dpo"), _Refused))
    assert main(arguments) == 0, "all rows are done"
    assert read_json(run / "eval/alignment/alignment/alignment.json")["rows"] == found["rows"]


class _Refused:
    @staticmethod
    def parse(arguments: list[str]) -> None:
        """Checked before anything is trained."""

    @staticmethod
    def train(*given: Any) -> None:
        raise AssertionError("trained again")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"row": {}}, "unknown key: 'row'"),
        ({"rows": {}}, "no rows"),
        ({"rows": {"one": {"script": "ppo"}}}, "a row needs a script"),
        ({"rows": {"one": {"script": "grpo", "loss_type": "grp"}}}, "loss_type: unknown value: 'grp'"),
    ],
)
def test_a_config_that_cannot_be(
    trained_run: Path, tmp_path: Path, given: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "alignment.yaml", given)
    assert main(["--run", str(trained_run), "--config", str(config)]) == 2
    assert message in capsys.readouterr().err
