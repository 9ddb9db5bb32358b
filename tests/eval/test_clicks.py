"""The click simulator by hand and by frequency, and the experiment on it at a tiny size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import click_bias, clicks
from eval.clicks import cascade_clicks, clicks_of, position_clicks
from eval.graded import Truth, graded_ndcg, relevance
from onesearch.corpus import Corpus, sources
from onesearch.errors import UserError
from training.rl.logged import LoggedLists

PATHS = (["food", "tea", "green"], ["food", "tea", "green"], ["food", "tea", "black"], ["food", "rice"], ["soap"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("shop")
    items = [{"item_id": f"i{n}", "title": " ".join(path), "categories": path} for n, path in enumerate(PATHS)]
    events = [{"user_id": "u", "item_id": "i0", "timestamp": 1_700_000_000, "event": "purchase", "query": "tea"}]
    for name, rows in {"items": items, "events": events}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sources.prepare("jsonl", folder / "corpus", path=folder)


def test_the_truth_is_what_the_module_says(corpus: Corpus) -> None:
    number = {one: place for place, one in enumerate(corpus.items["item_id"].to_list())}
    items = np.array([[number[f"i{n}"] for n in range(5)] + [-1]])
    truth = Truth(corpus)
    expected = [0.9, 0.4, 0.02 + 0.38 * 4 / 9, 0.02 + 0.38 / 9, 0.02, 0]
    np.testing.assert_allclose(truth(items[0, :1], items), [expected])
    np.testing.assert_allclose(truth.best(items[0, [0, 4, 0]], 3)[0], sorted(expected)[::-1][:3])
    np.testing.assert_allclose(truth.best(items[0, [0, 4, 0]], 3)[1], [0.9, 0.02, 0.02])


def test_lists_are_measured_by_hand() -> None:
    found, best = np.array([[0.4, 0.9], [0.9, 0.4], [0.0, 0.0]]), np.array([[0.9, 0.4]] * 3)
    np.testing.assert_allclose(relevance(found), [0.65, 0.65, 0])
    second = 1 / np.log2(3)
    np.testing.assert_allclose(graded_ndcg(found, best), [(0.4 + 0.9 * second) / (0.9 + 0.4 * second), 1, 0])


def test_clicks_are_as_frequent_as_their_models_say() -> None:
    users, attraction = 100_000, np.array([0.2, 0.5, 0.8])
    many = np.broadcast_to(attraction, (users, 3))
    position = position_clicks(many, 1.0, np.random.default_rng(0))
    cascade = cascade_clicks(many, np.random.default_rng(1))
    np.testing.assert_allclose(position.mean(0), attraction / [1, 2, 3], atol=0.006)
    np.testing.assert_allclose(cascade.mean(0), [0.2, 0.8 * 0.5, 0.8 * 0.5 * 0.8], atol=0.006)
    assert cascade.sum(1).max() == 1 and position.sum(1).max() > 1
    np.testing.assert_allclose(position_clicks(many, 0.0, np.random.default_rng(0)).mean(0), attraction, atol=0.006)


def test_clicks_come_from_their_seed() -> None:
    attraction = np.full((50, 4), 0.5)
    assert (clicks_of("cascade", attraction, 1.0, 3) == clicks_of("cascade", attraction, 1.0, 3)).all()
    assert (clicks_of("position", attraction, 1.0, 3) != clicks_of("position", attraction, 1.0, 4)).any()
    with pytest.raises(UserError, match=r"no such click model.*position, cascade"):
        clicks_of("magic", attraction, 1.0, 3)


def test_the_command_writes_what_a_training_reads(
    quantized_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicks, "POOL", 8)  # as many as the shop has of each kind
    path = tmp_path / "lists.parquet"
    arguments = ["--run", str(quantized_run), "--recent", "1", "--searches", "60", "--output", str(path)]
    assert clicks.main(arguments) == 0
    assert capsys.readouterr().out.startswith("60 lists")
    corpus = Corpus.load(quantized_run / "corpus")
    lists = LoggedLists.read(path, corpus, 10)
    shown = lists(np.arange(len(corpus.user)))
    listed = (shown.items >= 0).any(1)
    assert listed.sum() >= 60
    first = shown.items[listed][:, 0]
    titles = np.array(corpus.items["title"].to_list())
    asked = [corpus.queries[query].split()[0] for query in corpus.query[listed]]
    fits = [word in title for word, title in zip(asked, titles[first], strict=True)]
    assert np.mean(fits) > 0.9  # lists answer their searches
    assert clicks.main([*arguments, "--model", "magic"]) == 2
    assert "no such click model" in capsys.readouterr().err


def test_the_experiment_ends_with_a_table_and_goes_on(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    sizes = {"seeds": 7, "updates": 2, "batch": 16, "searches": 80, "held_out": 30}
    arguments = ["--run", str(run), *(part for name, one in sizes.items() for part in (f"--{name}", str(one)))]
    assert click_bias.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(found["rows"]) == {"sft", *click_bias.ways(1.0)}
    assert set(found["pairs"]) == {f"{one} - {other}" for one, other in click_bias.PAIRS}
    for row in list(found["rows"].values())[1:]:
        for metric, change in row["differences"].items():
            start = found["rows"]["sft"]["metrics"][metric]["mean"]
            assert change["mean"] == pytest.approx(row["metrics"][metric]["mean"] - start)
    trained = list((run / "eval/click_bias/run/models").glob("*-7/model.safetensors"))
    assert len(trained) == 5 and len({path.read_bytes() for path in trained}) == 5
    before = {path: path.stat().st_mtime_ns for path in trained}
    assert click_bias.main(arguments) == 0
    assert capsys.readouterr().out == (run / "eval/click_bias/click_bias.md").read_text(encoding="utf-8")
    assert {path: path.stat().st_mtime_ns for path in trained} == before
