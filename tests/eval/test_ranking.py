"""`python -m eval.ranking` on the made-up shop: from purchases, from impressions, and from files."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from eval.ranked_lists import RankedLists
from eval.ranking import main, write_trec
from eval.ranking_report import Scored
from eval.ranking_run import Ranking
from onesearch.corpus import TEST, Corpus, make_split, sample_requests
from onesearch.retriever import Retriever

SCORERS = ["popularity", "bm25", "dense", "own history", "cascade", "generator", "reciprocal ranks", "z-scores"]


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """The run with its ranking evaluation, files and all."""
    folder = tmp_path_factory.mktemp("ranked") / "run"
    shutil.copytree(trained_run, folder)
    assert main(["--run", str(folder), "--write-trec", "--depth", "8"]) == 0
    return folder


def test_purchases_are_ranked_in_the_union_of_what_systems_return(evaluated):
    report = json.loads((evaluated / "eval/ranking.json").read_text())
    assert list(report["scorers"]) == SCORERS
    assert report["lists_from"] == "union" and "union of the 8 best" in report["about"]
    assert report["against"] == "cascade" and "cascade" not in report["differences"]
    assert report["lists"] == 40 and 8 * 40 < report["pairs"] <= 48 * 40
    assert report["right"] + report["right_outside"] == 40
    assert report["lists_without_right"] == report["right_outside"]
    for row in report["scorers"].values():
        for metric in ("auc", "gauc-user", "gauc-query", "mrr@10", "ndcg@10"):
            assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
    means = {name: row["gauc-query"]["mean"] for name, row in report["scorers"].items()}
    assert means["popularity"] < means["bm25"] < means["own history"]
    assert all(0 < one["ndcg@10"]["p"] <= 1 for one in report["differences"].values())
    assert set(report["fusions"]["z-scores"]) == set(SCORERS[:6])


def test_the_generator_is_measured_as_the_probability_that_it_is(evaluated):
    report = json.loads((evaluated / "eval/ranking.json").read_text())
    assert [name for name, row in report["scorers"].items() if "ece" in row] == ["generator"]
    assert {"ece", "field-ece", "pcoc"} < set(report["scorers"]["generator"])
    assert sum(report["reliability"]["generator"]["pairs"]) == report["pairs"]
    picture = (evaluated / "eval/ranking.svg").read_text()
    assert picture.startswith("<svg xmlns=") and picture.count("<circle") >= 2


def test_the_generator_orders_a_list_as_it_answers(evaluated):
    """All 48 items on both sides, so the place of what was bought is the same."""
    retriever = Retriever.load(evaluated)
    corpus = retriever.corpus
    requests = sample_requests(corpus, make_split(corpus), TEST, 40, 7)
    assert (
        main(["--run", str(evaluated), "--depth", "48", "--scorers", "generator", "--output", str(evaluated / "x")])
        == 0
    )
    found = pl.read_parquet(evaluated / "x/ranking.parquet")
    hits = retriever.rank(requests, 48)[0] == requests.target[:, None]
    place = hits.argmax(axis=1)
    np.testing.assert_allclose(found["mrr@10"], np.where(place < 10, 1 / (place + 1), 0))
    assert found["list"].to_list() == [f"q{event}" for event in requests.event]


def test_files_that_were_written_give_the_same_figures(evaluated, tmp_path, capsys):
    folder = evaluated / "eval/ranking-trec"
    runs = [str(folder / f"{name.replace(' ', '-')}.run") for name in SCORERS[:6]]
    arguments = ["--trec", *runs, "--qrels", str(folder / "qrels.txt"), "--users", str(folder / "users.txt"), "--json"]
    capsys.readouterr()
    assert main([*arguments, "--output", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "ranking.json").read_text())
    expected = json.loads((evaluated / "eval/ranking.json").read_text())
    for name in ("lists", "users", "pairs", "right", "lists_without_right"):
        assert report[name] == expected[name]
    again = report["scorers"]["generator"]  # whose scores have no ties, which a run file cannot hold
    assert set(again) == {"auc", "gauc-user", "gauc-query", "mrr@10", "ndcg@5", "ndcg@10"}
    for metric, one in again.items():
        assert one["mean"] == pytest.approx(expected["scorers"]["generator"][metric]["mean"], abs=1e-9), metric
    assert "equal weights" in " ".join(report["notes"])


def test_names_of_files_are_those_of_every_system(tmp_path):
    lists = RankedLists(
        items=np.array([[1, 0]], np.int32),
        labels=np.array([[1, 0]], np.int32),
        user=np.zeros(1, np.int64),
        queries=["q"],
        item_ids=["a", "b"],
        outside=np.zeros(1, np.int64),
        about="",
    )
    scored = {"reward model: click": Scored(np.array([[0.25, 0.5]]))}
    write_trec(tmp_path, Ranking(lists, scored, {}, {}, ["ann"]))
    assert (tmp_path / "reward-model-click.run").read_text() == (
        "q Q0 a 1 0.5 reward-model-click\nq Q0 b 2 0.25 reward-model-click\n"
    )
    assert (tmp_path / "qrels.txt").read_text() == "q 0 b 1\nq 0 a 0\n"
    assert (tmp_path / "users.txt").read_text() == "q ann\n"


def test_models_of_a_run_are_compared(evaluated, tmp_path, capsys):
    shutil.copytree(evaluated / "models/sft", evaluated / "models/again")
    arguments = ["--run", str(evaluated), "--stage", "again", "sft", "--scorers", "generator-sft", "generator-again"]
    assert main([*arguments, "--depth", "5", "--against", "generator-sft"]) == 0
    report = json.loads((evaluated / "eval/again/ranking.json").read_text())
    assert list(report["differences"]) == ["generator-again"]
    same = report["differences"]["generator-again"]["auc"]
    assert same == {"mean": 0, "low": 0, "high": 0, "p": 1}
    assert list(report["reliability"]) == ["generator-again", "generator-sft"]


def test_a_run_without_a_generator_compares_the_baselines(quantized_run, tmp_path, capsys):
    arguments = ["--run", str(quantized_run), "--output", str(tmp_path), "--depth", "5", "--against", "bm25"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "ranking.json").read_text())
    assert list(report["scorers"]) == [name for name in SCORERS if name != "generator"]
    assert report["against"] == "bm25"
    assert not (tmp_path / "ranking.svg").exists()
    shown = capsys.readouterr().out
    assert "no trained generator" in shown and "difference to bm25" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--scorers", "bm52"],
            "--scorers: unknown scorer: 'bm52' (known: popularity, bm25, dense, own history, cascade, reciprocal ranks",
        ),
        (["--against", "generator"], "--against: unknown scorer: 'generator' (known: popularity"),
        (["--lists", "impressions"], "the log has no impressions"),
        (["--stage", "grpo"], "no trained generator"),
        (["--depth", "0"], "--depth: must be at least 1: 0"),
        (["--qrels", "x"], "only with run files"),
        (["--trec", "a.run"], "run files need labels"),
    ],
)
def test_mistakes_are_told(quantized_run, capsys, tmp_path, arguments, message):
    assert main(["--run", str(quantized_run), "--output", str(tmp_path / "none"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_corpus_is_the_one_of_the_run(evaluated):
    """What a list is called says which event asked for it."""
    corpus = Corpus.load(evaluated / "corpus")
    found = pl.read_parquet(evaluated / "eval/ranking.parquet").filter(scorer="bm25")
    users = corpus.users["user_id"].to_list()
    assert [users[corpus.user[int(name[1:])]] for name in found["list"]] == found["user"].to_list()
