"""Listwise DPO end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignments import TINY, curve
from made_up import write_yaml

from onesearch.errors import UserError
from onesearch.retriever import Retriever
from training import dpo


def test_dpo_prefers_what_was_bought(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    values = {name: value for name, value in TINY.items() if name != "num_generations"}
    values |= {"run": str(run), "max_steps": 24, "eval_strategy": "no", "save_strategy": "no", "losers": 4, "sft": 0.1}
    dpo.train(*dpo.parse(["--config", str(write_yaml(run.parent / "dpo.yaml", values))]))
    margin = list(curve(run, "margin", "dpo").values())
    assert margin[0] == pytest.approx(0, abs=1e-4) and np.mean(margin[-4:]) > 0.1
    assert Retriever.load(run, "dpo").reader is not None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lists": "nowhere"}, "lists: unknown value: 'nowhere'"),
        ({"losers": 0}, "losers: must be 1 or more: 0"),
        ({"beta": 0.0}, "beta: must be above 0"),
        ({"lists": "log"}, "nothing was shown in this log"),
    ],
)
def test_what_dpo_cannot(trained_run: Path, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    values = {name: value for name, value in TINY.items() if name != "num_generations"}
    values |= {"run": str(trained_run), "output_dir": str(tmp_path / "out"), **more}
    with pytest.raises(UserError, match=message):
        dpo.train(*dpo.parse(["--config", str(write_yaml(tmp_path / "dpo.yaml", values))]))
