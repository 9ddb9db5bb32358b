"""Fully sharded training: `accelerate` shards on GPUs only, so the same `fully_shard` is applied here to two processes
on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fsdp_worker import losses

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_processes_with_a_share_of_the_weights_learn_what_one_learns(tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launch, "tests/training/fsdp_worker.py", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = json.loads(out.read_text())
    assert sharded["processes"] == "2"
    alone = losses(False, 0, 1)
    assert sharded["losses"] == pytest.approx(alone, rel=1e-4)
    assert alone[-1] < alone[0]
