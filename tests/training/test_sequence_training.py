"""Training of the model of histories: from the command line to answers, on a made-up log without queries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import TINY, write_histories
from made_up import write_shop, write_yaml
from safetensors.numpy import load_file

from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.pipeline import STEPS
from onesearch.retriever import Request, Retriever
from onesearch.run import Run
from onesearch.settings import Settings
from onesearch.where import Filter
from training.sequence import main, parse, train

ROOT = Path(__file__).parents[2]


def options(run: Path, **more: Any) -> list[str]:
    return [part for name, value in {"run": run, **TINY, **more}.items() for part in (f"--{name}", str(value))]


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "source": "jsonl",
        "path": str(folder / "log"),
        "on_error": "mend",
        "split": "leave-one-out",
        "behaviour": 0.5,
        "level_sizes": [4, 4],
        "last_level": 8,
        "model": "sequence",
        "sft": str(write_yaml(folder / "sequence.yaml", TINY)),
        **more,
    }


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("wordllama")
    folder = tmp_path_factory.mktemp("histories")
    write_histories(folder / "log")
    run = Run.create(folder / "run", Settings.of(settings(folder)))
    for name in ("prepare", "embed", "quantize"):
        STEPS[name].do(run, lambda done, total: None)
    return run.folder


@pytest.fixture(scope="module")
def trained(quantized: Path) -> Path:
    STEPS["train"].do(Run.open(quantized), lambda done, total: None)
    return quantized


def onesearch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onesearch.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_a_run_that_another_training_writes_is_left_alone(
    quantized: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sequence.py", "--run", str(quantized)])
    with Run.open(quantized).lock(), pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert f"process {os.getpid()} is writing this run" in capsys.readouterr().err


def test_a_loss_that_is_no_number_stops_the_training(quantized: Path, tmp_path: Path) -> None:
    target = tmp_path / "checkpoints"
    with pytest.raises(UserError, match=r"batch \d+: .* is not a finite number"):
        train(*parse(options(quantized, stage="diverges", output_dir=target, learning_rate=1e30, max_grad_norm=0)))
    assert not (quantized / "models/diverges/config.json").exists()


def test_it_learns_what_follows(trained: Path) -> None:
    """Nine times in ten the next item of the catalogue follows; the generator and the interest head find it."""
    log = read_json(trained / "models/sft/log_history.json")
    losses = [one["eval_loss"] for one in log if "eval_loss" in one]
    assert min(losses) < 0.7 * losses[0]
    found = next(one for one in log if "valid_ndcg@10 both" in one)
    assert all(found[f"valid_recall@10 {mode}"] > 0.8 for mode in ("generate", "interest", "both"))
    share = read_json(trained / "models/sft/config.json")["interest_share"]
    assert 0.1 <= share <= 0.9


def test_a_saved_model_answers_in_every_mode(trained: Path) -> None:
    retriever = Retriever.load(trained)
    asked = [Request("", "u003"), Request("", "u004", Filter(deny=("i01", "i02"))), Request("", None)]
    for mode in ("generate", "interest", "both"):
        answers = retriever.search(asked, 5, mode)  # type: ignore[arg-type]
        assert [len(answer.hits) for answer in answers] == [5, 5, 5]
        assert not {hit.item_id for hit in answers[1].hits} & {"i01", "i02"}
        scores = [hit.score for hit in answers[0].hits]
        assert scores == sorted(scores, reverse=True)
        assert (
            answers[0].given[0].item_id
            == retriever.corpus.items["item_id"][int(retriever.corpus.item[retriever.corpus.offsets[4] - 1])]
        )
    few = retriever.search([Request("", "u003", Filter(allow=("i05", "i06")))], 5, "both")[0]
    assert {hit.item_id for hit in few.hits} == {"i05", "i06"} and few.note is not None


def test_the_command_line_answers_from_a_history_alone(trained: Path) -> None:
    both = onesearch("generate", "--run", trained, "--user", "u003", "-k", "3", "--mode", "both", "--json")
    assert both.returncode == 0, both.stderr
    assert len(json.loads(both.stdout)["hits"]) == 3
    wrong = onesearch("generate", "--run", trained, "--user", "u003", "--mode", "dense")
    assert wrong.returncode == 2 and "use one of generate, interest, both" in wrong.stderr


def test_an_item_without_title_can_be_found(trained: Path) -> None:
    answer = Retriever.load(trained).search([Request("", "u003", Filter(allow=("i05",)))], 1)[0]
    assert [hit.title for hit in answer.hits] == ["i05"]


def test_a_model_without_an_interest_head_says_so(quantized: Path) -> None:
    train(*parse(options(quantized, stage="plain", interest=0, num_train_epochs=1)))
    retriever = Retriever.load(quantized, "plain")
    assert retriever.search([Request("", "u003")], 3)[0].hits
    with pytest.raises(UserError, match=r"--mode: this model has no interest head: 'both' \(use --mode generate"):
        retriever.search([Request("", "u003")], 3, "both")


def interrupted_at(step: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_training_ends_like_an_uninterrupted_one(quantized: Path) -> None:
    train(*parse(options(quantized, stage="whole", num_train_epochs=4, dropout=0.2)))
    broken = options(quantized, stage="broken", num_train_epochs=4, dropout=0.2)
    with pytest.raises(KeyboardInterrupt):
        train(*parse(broken), interrupted_at(8))
    assert list((quantized / "models/broken").glob("checkpoint-*"))
    steps: list[int] = []
    train(*parse(broken), lambda done, total: steps.append(done))
    assert steps[0] > 3 and steps[-1] == 12
    one, other = (load_file(quantized / f"models/{stage}/model.safetensors") for stage in ("whole", "broken"))
    for name, weight in one.items():
        np.testing.assert_allclose(other[name], weight, atol=1e-5)
    assert not list((quantized / "models/broken").glob("checkpoint-*"))


def test_a_log_with_queries_is_learnt_too(tmp_path: Path) -> None:
    """The same user, two queries: two answers."""
    pytest.importorskip("wordllama")
    write_shop(tmp_path / "log")
    run = Run.create(tmp_path / "run", Settings.of(settings(tmp_path, split="time")))
    for name in ("prepare", "embed", "quantize", "train"):
        STEPS[name].do(run, lambda done, total: None)
    retriever = Retriever.load(run.folder)
    cereal, soap = retriever.search([Request("cold cereal", "u1"), Request("dish soap", "u1")], 4, "both")
    assert [hit.item_id for hit in cereal.hits] != [hit.item_id for hit in soap.hits]
    assert sum("cereal" in hit.title for hit in cereal.hits) >= 2


@pytest.mark.slow
def test_from_raw_events_to_the_table_by_one_command(tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    write_histories(tmp_path / "log")
    config, run = write_yaml(tmp_path / "run.yaml", settings(tmp_path)), tmp_path / "run"
    done = onesearch("demo", "--config", config, "--run", run)
    assert done.returncode == 0, done.stderr
    results = read_json(run / "eval/recall.json")
    assert set(results["systems"]) == {"popularity", "sasrec", "generator", "interest", "both"}
    assert set(results["unseen"]) == set(results["systems"])
    assert results["queries"] == 60
    for name in ("sasrec", "generator", "interest", "both"):
        assert results["systems"][name]["recall@10"]["mean"] > results["systems"]["popularity"]["recall@10"]["mean"]
    assert "NDCG@5" in done.stdout and "both, unseen" in done.stdout
    assert (run / "report.html").exists()
    again = onesearch("demo", "--config", config, "--run", run)
    wanted = [step for step in STEPS.values() if step.needed(Run.open(run))]
    assert again.returncode == 0 and again.stdout.count("already done") == len(wanted)


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*/*-sequence.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_opens_with_its_command(config: Path) -> None:
    parse(["--config", str(config)])
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command == f"# accelerate launch training/sequence.py --config {config.relative_to(ROOT)}"
    run = config.with_name(config.name.replace("-sequence", ""))
    assert Settings.read(run).sft == str(config.relative_to(ROOT))
    command = run.read_text(encoding="utf-8").splitlines()[0]
    assert command.startswith(f"# onesearch demo --config {run.relative_to(ROOT)} --run ")
