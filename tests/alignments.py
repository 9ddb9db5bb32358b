"""Alignments as tests make them: small and short, and rewards that the log knows nothing of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from made_up import write_yaml

from onesearch.files import read_json

TINY: dict[str, Any] = {
    "recent": 1.0,
    "num_generations": 6,
    "per_device_train_batch_size": 16,
    "learning_rate": 1.0e-3,
    "max_steps": 6,
    "warmup_steps": 1,
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "valid_requests": 30,
    "valid_beams": 10,
    "margin": 0.0,
}
CHEAP, FIRST_KINDS, NOTHING = (f"{__name__}:{reward}" for reward in ("cheap", "first_kinds", "nothing"))


def options(run: Path, stage: str = "grpo", **more: Any) -> list[str]:
    values = {**TINY, "run": str(run), "stage": stage, **more}
    return ["--config", str(write_yaml(run.parent / f"{run.name}-{stage}.yaml", values))]


def log_of(run: Path, stage: str = "grpo") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(run / f"models/{stage}/log_history.json")
    return found


def curve(run: Path, name: str, stage: str = "grpo") -> dict[int, float]:
    return {entry["step"]: entry[name] for entry in log_of(run, stage) if name in entry}


def cheap(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that the log knows nothing of: items with an even number."""
    return [float(item % 2 == 0) for item in columns["item"]]


def first_kinds(
    prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
) -> list[float]:
    """The same for half of the shop's kinds, which first codes tell apart."""
    return [float(item < 24) for item in columns["item"]]


def nothing(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    return [0.0] * len(prompts)
