import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.ingest import generate


def test_the_same_log_every_time_and_in_the_order_of_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(tmp_path / name, 4_000, ".parquet")
    first, second = (pl.read_parquet(tmp_path / name / "events.parquet") for name in ("one", "two"))
    assert first.equals(second)
    assert len(first) == 4_000
    assert first["timestamp"][::4].is_sorted()
    counts = np.sort(first["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.3 * counts.sum()  # evenly drawn it would be a tenth


def test_from_the_command_to_training_batches(tmp_path: Path) -> None:
    pytest.importorskip("wordllama", reason="needs the extra: demo")
    command = [sys.executable, "-m", "benchmarks.ingest", "--out", tmp_path / "here", "--events", "20000"]
    done = subprocess.run([*map(str, command), "--source", "jsonl"], check=True, stdout=subprocess.PIPE, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["events"] == 20_000
    assert figures["examples"] > 512
    assert figures["examples_per_s"] > 0
    assert 50 < figures["prepare_peak_mb"] < 2_000
    assert not (tmp_path / "here").exists()
