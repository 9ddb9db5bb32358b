"""The reward model from the command line: it learns, goes on after an interruption, judges, and tells mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import write_yaml
from reward_shows import random_shows, write_shows
from safetensors.numpy import load_file

from eval.reward import main as evaluate
from eval.scorers_reward import RewardScorer
from onesearch.corpus import TEST, VALID, Corpus, Requests, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.reward import Interactions, RewardModel
from onesearch.run import Run
from onesearch.settings import Settings
from training import pretrain
from training.reward import main, parse, train

ROOT = Path(__file__).parents[2]
NewRun = Callable[[str], Path]

TINY = {
    "width": 32,
    "heads": 2,
    "slots": 6,
    "recent": 0.7,
    "requests": 600,
    "valid_requests": 60,
    "calibration_epochs": 2,
    "per_device_train_batch_size": 32,
    "num_train_epochs": 3,
    "warmup_steps": 5,
    "learning_rate": 3.0e-3,
    "logging_steps": 5,
    "eval_steps": 20,
    "save_steps": 20,
}


def options(run: Path, **more: Any) -> list[str]:
    """Command line options of a tiny training."""
    found = []
    for name, value in {"run": run, **TINY, **more}.items():
        found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


@pytest.fixture(scope="module")
def judged_run(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the made-up shop with a reward model, trained by the script as people start it."""
    import shutil

    folder = tmp_path_factory.mktemp("reward") / "run"
    shutil.copytree(quantized_run, folder)
    config = write_yaml(folder.parent / "reward.yaml", TINY)
    launch = ["-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "training/reward.py"]
    done = subprocess.run(
        [sys.executable, *launch, "--config", str(config), "--run", str(folder), "--policy", "true"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held-out lists; calibrated" in done.stdout
    return folder


def test_it_tells_purchases_from_other_candidates(judged_run: Path) -> None:
    values = read_json(judged_run / "models/reward/valid.json")
    assert values["both_auc"] > 0.75 and values["click_auc"] > 0.7
    assert values["both_auc_calibrated"] == values["both_auc"], "a monotone calibrator keeps the order"
    assert values["relevance_correlation"] > 0.5
    levels = values["reward_by_level"]
    assert levels["2.0"] > levels["0.0"]
    assert sum(values["fusion"]) == pytest.approx(1) == pytest.approx(sum(values["policy_weights"]))


def test_the_model_judges_requests_that_it_has_not_seen(judged_run: Path) -> None:
    model = RewardModel.load(judged_run)
    corpus = model.corpus
    requests = sample_requests(corpus, make_split(corpus), TEST, 40, 0)
    items = np.tile(np.arange(len(corpus.items)), (len(requests), 1))
    items[:, 7] = -1
    found = model.judge(requests, items)
    for name in ("click", "conversion", "both", "relevance", "reward"):
        values = getattr(found, name)
        assert values.dtype == np.float32 and values.shape == items.shape
        assert np.isfinite(values).all() and (values[:, 7] == 0).all()
        assert ((values >= 0) & (values <= (1 if name != "reward" else 10))).all()
    best = np.argsort(-found.both, axis=1)[:, :10]
    assert (best == requests.target[:, None]).any(1).mean() > 0.5
    half = model.judge(requests.part(slice(10, 20)), items[10:20, :5])
    np.testing.assert_allclose(half.reward, found.reward[10:20, :5], rtol=1e-4)


def test_relevance_is_the_same_for_everybody(judged_run: Path) -> None:
    model = RewardModel.load(judged_run)
    corpus = model.corpus
    requests = sample_requests(corpus, make_split(corpus), VALID, 40, 0)
    (query, _), *_ = Counter(requests.query).most_common(1)
    same = [one for one in range(len(requests)) if requests.query[one] == query]
    assert len(set(requests.user[same])) > 1
    items = np.tile(np.arange(20), (len(same), 1))
    relevance = model.judge(requests.take(np.array(same)), items).relevance
    np.testing.assert_allclose(relevance, np.broadcast_to(relevance[:1], relevance.shape), atol=1e-6)


def test_it_scores_lists_for_the_ranking_evaluation(judged_run: Path) -> None:
    scorer = RewardScorer.load(Run.open(judged_run), given="both")
    corpus = scorer.model.corpus
    requests = sample_requests(corpus, make_split(corpus), VALID, 5, 0)
    found = scorer.score(requests, np.array([[0, 1, -1]] * 5))
    assert scorer.calibrated and scorer.name == "reward model: both"
    assert (found[:, 2] == -np.inf).all() and ((found[:, :2] > 0) & (found[:, :2] < 1)).all()
    with pytest.raises(UserError, match="unknown score of a reward model: 'both2'"):
        RewardScorer(scorer.model, "both2")


def test_an_interrupted_training_ends_like_an_uninterrupted_one(new_run: NewRun) -> None:
    short = {"max_steps": 12, "save_steps": 5, "eval_steps": 6, "logging_steps": 1, "views": ["queries", "uid"]}
    whole, broken = new_run("whole"), new_run("broken")

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    train(*parse(options(whole, **short)))
    with pytest.raises(KeyboardInterrupt):
        train(*parse(options(broken, **short)), stop)
    steps: list[int] = []
    train(*parse(options(broken, **short)), lambda done, total: steps.append(done))
    assert steps == list(range(6, 13)), "it went on after the checkpoint"
    one, other = (load_file(run / "models/reward/model.safetensors") for run in (whole, broken))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-5)
    assert not list((broken / "models/reward").glob("checkpoint-*"))
    RewardModel.load(broken)


def test_pretrained_items_are_loaded_and_stay_as_they_are(new_run: NewRun) -> None:
    run = new_run("run")
    arguments = ["--run", str(run), "--width", "16", "--heads", "2", "--positions", "8", "--negatives", "20"]
    arguments += ["--per_device_train_batch_size", "16", "--num_train_epochs", "4", "--logging_steps", "1"]
    pretrain.pretrain(*pretrain.parse(arguments))
    log = read_json(run / "models/items/log_history.json")
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    items = load_file(run / "models/items/items.safetensors")["items"]
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1, rtol=1e-5)
    train(*parse(options(run, items="pretrained", max_steps=6)))
    kept = load_file(run / "models/reward/model.safetensors")["own.weight"]
    np.testing.assert_array_equal(kept, items)
    train(*parse(options(run, items="pretrained", frozen=False, max_steps=6, stage="free")))
    assert not np.array_equal(load_file(run / "models/free/model.safetensors")["own.weight"], items)


def test_shown_rows_and_graded_relevance_are_learnt_from(tmp_path: Path) -> None:
    """A log with impressions: every search is a list of what was shown, and judgements teach the relevance head."""
    from onesearch.pipeline import STEPS

    write_shows(tmp_path / "log", random_shows(800))
    settings = Settings(source="jsonl", path=str(tmp_path / "log/raw"), level_sizes=(3, 3), last_level=4)
    run = Run.create(tmp_path / "run", settings)
    for name in ("prepare", "embed", "quantize"):
        STEPS[name].do(run, lambda done, total: None)
    values = train(*parse(options(run.folder, num_train_epochs=6, per_device_train_batch_size=16)))
    assert values["click_auc"] > 0.8
    assert 0.1 < values["click_rate"] < 0.45 and values["conversion_rate"] > 0.2
    model = RewardModel.load(run)
    corpus = model.corpus
    soap = int(np.flatnonzero(corpus.query == corpus.queries.index("soap"))[0])
    requests = Requests.of(corpus, np.array([soap]))
    good, poor = model.judge(requests, np.array([[0, 2]])).relevance[0]
    assert good > poor + 0.2  # graded 3 and 1
    levels = Interactions.of(corpus).levels(requests, np.array([[0, 1, 2, 3, 4, 5]]))
    assert levels.max() > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"items": "frozen"}, r"items: unknown name: 'frozen' \(known: none, scratch, pretrained\)"),
        ({"calibration": "platt"}, "calibration: unknown name: 'platt'"),
        ({"own": -1}, "own: a number of items is not negative: -1"),
        ({"heads": 5}, r"width: the heads do not divide the width: 32 \(choose a multiple of --heads\)"),
        ({"fusion": [1.0, 2.0]}, r"fusion: weights of the heads: \[1.0, 2.0\] \(give four numbers"),
        ({"items": "pretrained"}, r"no pretrained items \(accelerate launch training/pretrain.py --run"),
        ({"beam": 4}, r"no generator to ask \(train it first, or leave it out with --beam 0"),
        ({"per_device_train_batch_size": 5000}, "fewer training requests than one batch: .* .lower --per_device"),
    ],
)
def test_what_cannot_be_meant_is_told(quantized_run: Path, tmp_path: Path, more: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        train(*parse(options(quantized_run, output_dir=tmp_path, **more)))


def test_a_run_without_a_reward_model_says_how_to_get_one(quantized_run: Path) -> None:
    with pytest.raises(UserError, match=r"no reward model here \(accelerate launch training/reward.py --run"):
        RewardModel.load(Run.open(quantized_run))


def test_an_option_that_does_not_exist_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "reward.yaml", {"listwize": 0.3})
    monkeypatch.setattr(sys, "argv", ["reward.py", "--config", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"onesearch: {config}: unknown option: 'listwize' (did you mean 'listwise'?)"


def test_the_config_is_valid_and_opens_with_its_command() -> None:
    config = ROOT / "configs/demo/reward.yaml"
    parse(["--config", str(config)])
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command == "# accelerate launch training/reward.py --config configs/demo/reward.yaml"


def test_help_lists_our_options_and_those_of_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--calibration" in text and "--learning_rate" in text and "accelerate launch" in text


def test_corpus_is_read_once_where_it_is_given(judged_run: Path) -> None:
    corpus = Corpus.load(judged_run / "corpus")
    assert RewardModel.load(judged_run, corpus=corpus).corpus is corpus


def test_the_evaluation_measures_the_model_on_lists_of_test_searches(
    judged_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(["--run", str(judged_run), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report == read_json(judged_run / "eval/reward.json")
    both = report["order"]["both"]["auc"]
    assert both["low"] < both["mean"] < both["high"] and both["mean"] > 0.7
    ways = report["calibration"]
    assert ways["monotone"]["both"]["auc"] == ways["none"]["both"]["auc"] != ways["field"]["both"]["auc"]
    fusion = report["fusion"]
    assert fusion["fixed, chosen on validation"]["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert fusion["policy without the format rule"]["largest_weight"] > 0.25
    assert report["levels"]["2.0"]["both"] > report["levels"]["0.0"]["both"]
