"""Trainings as a user starts them, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MANY = ("--multi_gpu",)


def started(script: str, arguments: Sequence[str], launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """`python SCRIPT`, with one thread and no GPU."""
    return subprocess.Popen(
        [sys.executable, *launcher, script, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What a process printed that ended well."""
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return said


def in_two_processes(script: str, arguments: Sequence[str], many: Sequence[str] = MANY) -> str:
    """What `accelerate launch` of two processes printed, with these options."""
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", *many, "--main_process_port", "0"]
    return finished(started(script, arguments, launcher))
