"""KuaiSearch's impressions and clicks, from the published sample.

Its README forbids to measure anything with it: 200 searches of 198 users, whose items were sampled apart. So this
holds that the format arrives, not what the figures are. Every search is one that systems could learn from, since no
user has the three visits that a held-out one needs.
"""

import json
import os
from pathlib import Path

import pytest

from eval.ranking import main
from onesearch.pipeline import STEPS
from onesearch.run import Run
from onesearch.settings import Settings


@pytest.fixture(scope="module")
def kuai(tmp_path_factory):
    """A run without a model; the sample, with a made-up row for every item that its 200 item rows lack."""
    pytest.importorskip("wordllama")
    sample = Path(os.environ.get("ONESEARCH_DATA", Path(__file__).parents[3] / "shared" / "data")) / "kuaisearch-demo"
    if not sample.is_dir():
        pytest.skip(f"no real data at {sample}: set ONESEARCH_DATA")
    folder = tmp_path_factory.mktemp("kuai")
    tables = {
        name: [json.loads(line) for line in (sample / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("items", "users", "recall", "rank", "relevance")
    }
    tables["recall"] = [row for row in tables["recall"] if row["clicked_item_ids"]][:40]
    used = {row["target_item_id"] for row in tables["rank"]}
    for row in [*tables["recall"], *tables["rank"]]:
        used |= {item for key, value in row.items() if key.endswith("item_ids") for item in value}
    first = tables["items"][0]
    missing = sorted(used - {row["item_id"] for row in tables["items"]})
    tables["items"] += [{**first, "item_id": one, "item_title": f"item {one}"} for one in missing]
    for name, rows in tables.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    settings = Settings(source="kuaisearch", path=str(folder), split="leave-one-out")
    run = Run.create(folder / "run", settings)
    STEPS["prepare"].do(run, lambda done, total: None)
    return run.folder, tables


def test_impressions_and_clicks_become_lists(kuai, tmp_path):
    folder, tables = kuai
    assert main(["--run", str(folder), "--part", "train", "--output", str(tmp_path), "--write-trec"]) == 0
    report = json.loads((tmp_path / "ranking.json").read_text())
    shown = tables["recall"]
    assert report["lists_from"] == "impressions"
    assert report["lists"] == len(shown)
    assert report["pairs"] == sum(len(set(row["impressed_item_ids"])) for row in shown)
    assert report["right"] == sum(len(set(row["clicked_item_ids"]) | set(row["purchased_item_ids"])) for row in shown)
    assert any("have learnt from these very searches" in note for note in report["notes"])
    labels = (tmp_path / "ranking-trec/qrels.txt").read_text().splitlines()
    assert len(labels) == report["pairs"]
    clicked = {str(item) for row in shown for item in row["clicked_item_ids"]}
    assert {line.split()[2] for line in labels if line.endswith(" 1")} >= clicked


def test_a_part_without_searches_is_told(kuai, capsys):
    folder, _ = kuai
    assert main(["--run", str(folder)]) == 2
    assert "no impressions: '--part test' (choose another --part" in capsys.readouterr().err
