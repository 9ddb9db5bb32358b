import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from eval.generator import GeneratorSystem, Unmoved
from eval.recall import aligned_system, bought_before, evaluate, slices_of, tail_items, write_evaluation
from onesearch.corpus import TEST, TRAIN, Corpus, make_split, sample_requests
from onesearch.retriever import Retriever


class Fixed:
    """Puts the target at place `place(q)` of every list."""

    def __init__(self, name, place, infinite=False):
        self.name, self._place = name, place
        self.tuned = {"half_life_days": float("inf")} if infinite else {}

    def rank(self, requests, k):
        items = np.tile(np.arange(k, dtype=np.int32), (len(requests), 1))
        for q, target in enumerate(requests.target):
            others = [i for i in range(k + 1) if i != target][: k - 1]
            others.insert(self._place(q), target)
            items[q] = others
        return items, np.tile(-np.arange(k, dtype=np.float32), (len(requests), 1))


@pytest.fixture(scope="module")
def shop(quantized_run):
    corpus = Corpus.load(quantized_run / "corpus")
    split = make_split(corpus)
    return corpus, split, sample_requests(corpus, split, TEST, 40, 0)


def test_the_generator_is_compared_with_the_strongest_baseline(shop, tmp_path):
    corpus, split, requests = shop
    systems = [
        Fixed("popularity", lambda q: 4, infinite=True),
        Fixed("cascade", lambda q: 1),
        Fixed("generator", lambda q: 0),
    ]
    evaluation = evaluate(systems, corpus, split, requests, k=10)
    report = evaluation.report
    assert report["strongest_baseline"] == "cascade"
    assert report["queries"] == len(requests)
    assert report["systems"]["popularity"]["mrr@10"] == pytest.approx(dict.fromkeys(("mean", "low", "high"), 0.2))
    assert set(report["differences"]) == {"popularity", "generator"}
    assert report["differences"]["generator"]["mrr@10"]["low"] == pytest.approx(0.5)
    assert report["differences"]["popularity"]["mrr@10"]["mean"] == pytest.approx(-0.3)
    assert report["tuned"]["popularity"] == {"half_life_days": "infinite"}

    write_evaluation(tmp_path, evaluation, corpus, requests)
    assert json.loads((tmp_path / "recall.json").read_text()) == report
    kept = pl.read_parquet(tmp_path / "per_query.parquet")
    assert kept.filter(system="generator")["event"].to_list() == requests.event.tolist()
    means = dict(kept.group_by("system").agg(pl.col("mrr@10").mean()).rows())
    assert means == pytest.approx({"popularity": 0.2, "cascade": 0.5, "generator": 1})
    assert {path.name for path in (tmp_path / "trec").iterdir()} == {
        "qrels.txt",
        "popularity.run",
        "cascade.run",
        "generator.run",
    }


def test_the_values_of_a_slice_divide_the_requests(shop):
    corpus, split, requests = shop
    found = slices_of(corpus, split, requests)
    for name in ("purchase", "item"):
        np.testing.assert_array_equal(sum(mask.astype(int) for mask in found[name].values()), 1)


def test_a_repeat_is_an_item_of_the_history(shop):
    corpus, _, requests = shop
    expected = [
        target in corpus.item[start:end]
        for target, start, end in zip(requests.target, requests.history_start, requests.history_end, strict=True)
    ]
    assert bought_before(corpus, requests).tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_the_tail_begins_after_four_fifths_of_purchases():
    counts = [50, 30, 10, 6, 4, 0]
    item = np.repeat(np.arange(6), counts)
    corpus = SimpleNamespace(items=range(6), item=item, kind=np.full(100, 3, np.int8))
    tail = tail_items(corpus, np.full(100, TRAIN, np.int8))
    assert tail.tolist() == [False, False, True, True, True, True]


def test_an_aligned_generator_that_kept_its_start_is_not_asked_again(trained_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    shutil.copytree(run / "models/sft", run / "models/grpo")
    start = GeneratorSystem(Retriever.load(run))
    corpus = start.retriever.corpus
    requests = sample_requests(corpus, make_split(corpus), TEST, 5, 0)
    answers = start.rank(requests, 10)
    kept = aligned_system(run, start)
    assert isinstance(kept, Unmoved) and kept.name == "aligned"
    assert kept.rank(requests, 10) is answers
    path = run / "models/grpo/model.safetensors"
    weights = load_file(path)
    weights["sources.prior_gate.bias"] += 1
    save_file(weights, path, {"format": "pt"})
    moved = aligned_system(run, start)
    assert isinstance(moved, GeneratorSystem) and moved.name == "aligned"
    assert (moved.rank(requests, 10)[1] != answers[1]).any()
