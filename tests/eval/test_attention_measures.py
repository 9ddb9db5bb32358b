"""Attention and the interest vector: measures by hand, the recorded attention, the probe, and the command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import TINY, write_yaml

from eval.attention import column_entropy, compared, effective_rank, load, look, main, recording, sink_mass
from eval.decodability import decodability, jaccard
from onesearch.corpus import VALID, Corpus, make_split, sample_requests
from onesearch.files import read_json
from onesearch.run import Run
from training.sft import parse, train

NewRun = Callable[[str], Path]


def test_sink_mass_and_column_entropy_by_hand() -> None:
    """Three positions and padding: the first gets .8 and .6 of the others, the second .1 and .3, the third 0 and .1."""
    weight = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0], [0.6, 0.3, 0.1, 0.0], [0.0, 1.0, 0.0, 0.0]])
    used = torch.tensor([True, True, True, False])
    assert float(sink_mass(weight, used)) == pytest.approx(0.7)
    share = np.array([1.4, 0.4]) / 1.8
    assert float(column_entropy(weight, used)) == pytest.approx(-(share * np.log(share)).sum() / np.log(3), rel=1e-5)
    even, all_used = torch.full((4, 4), 0.25), torch.ones(4, dtype=torch.bool)
    assert float(sink_mass(even, all_used)) == pytest.approx(0.25)
    assert float(column_entropy(even, all_used)) == pytest.approx(1.0)


def test_effective_rank_counts_directions() -> None:
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4.0)
    assert effective_rank(corners + 5) == pytest.approx(4.0)
    assert effective_rank(torch.arange(6.0).unsqueeze(1) * torch.ones(1, 4)) == pytest.approx(1.0)


def test_jaccard_by_hand() -> None:
    told = torch.tensor([[5, 6, 6, 2, 9], [5, 2, 0, 0, 0], [2, 7, 7, 7, 7]])
    text = torch.tensor([[6, 7, 2], [5, 2, 0], [8, 2, 0]])
    torch.testing.assert_close(jaccard(told, text, end=2, vocabulary=10), torch.tensor([1 / 3, 1.0, 0.0]))


def test_a_probe_reads_what_a_vector_says_and_foresees_no_more_than_what_is_common() -> None:
    """Four texts that depend on the vector's signs: none is left to guess, and without the vector two bits are."""
    random = torch.Generator().manual_seed(0)
    texts = torch.tensor([[4, 5, 2], [6, 7, 2], [8, 9, 2], [10, 2, 0]])

    def some(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = torch.randn(count, 6, generator=random)
        return vectors, texts[(vectors[:, 0] > 0).long() + 2 * (vectors[:, 1] > 0).long()]

    fit, held_out = some(2000), some(300)
    before = torch.random.get_rng_state()
    told = decodability(fit, held_out, vocabulary=11, end=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    nothing = [(torch.zeros_like(vectors), text) for vectors, text in (fit, held_out)]
    blind = decodability(nothing[0], nothing[1], vocabulary=11, end=2)
    assert told.nats < 0.15 and told.jaccard > 0.9
    tokens = (texts > 0).sum(1).double().mean()
    assert blind.nats == pytest.approx(float(np.log(4) / tokens), abs=0.05) and blind.jaccard < 0.4
    assert decodability(fit, held_out, vocabulary=11, end=2) == told


@pytest.fixture
def quick_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps of the probe: what it tells is tested above."""
    monkeypatch.setattr("eval.decodability.STEPS", 40)


@pytest.fixture(scope="module")
def heading_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the stage `sft`, and `karma`, which has an interest head."""
    folder = tmp_path_factory.mktemp("heading") / "run"
    shutil.copytree(trained_run, folder)
    options = {"interest": 16, "reconstruct": 0.1, "eval_strategy": "no", "save_strategy": "no", "max_steps": 20}
    values = {**TINY, **options, "run": str(folder), "stage": "karma"}
    train(*parse(["--config", str(write_yaml(folder / "karma.yaml", values))]))
    return folder


def test_recorded_attention_is_the_attention_that_the_model_uses(heading_run: Path) -> None:
    reader = load(Run.open(heading_run), "karma")
    corpus = Corpus.load(heading_run / "corpus")
    requests = sample_requests(corpus, make_split(corpus), VALID, 20, seed=0)
    inputs, _ = reader.builder.inputs(requests)
    with torch.inference_mode():
        plain = reader.model.read(**inputs)
        with recording(reader.model.backbone.get_encoder()) as layers:
            seen = reader.model.read(**inputs)
        again = reader.model.read(**inputs)
    torch.testing.assert_close(seen.states[seen.mask[:, 0, 0]], plain.states[plain.mask[:, 0, 0]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.interest, plain.interest, atol=1e-5, rtol=1e-5)
    assert len(layers) == 1 and torch.equal(again.states, plain.states), "nothing is recorded any more"
    torch.testing.assert_close(layers[0].sum(-1), torch.ones(layers[0].shape[:-1]))
    found = look(reader, requests, example=3)
    size = sum(count for _, count in found.parts)
    assert [name for name, _ in found.parts][-2:] == ["query", "[INT]"]
    assert found.example.shape == (size, size) and (found.example[:-1, -1] == 0).all(), "nobody reads [INT]"
    torch.testing.assert_close(found.example.sum(-1), torch.ones(size))


def test_the_command_compares_two_stages(
    heading_run: Path, quick_probe: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(heading_run), "--stage", "karma", "--against", "sft", "--requests", "40"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "| sft | 0." in out and "| karma | 0." in out and "of 16 |" in out
    report = read_json(heading_run / "eval/attention.json")
    assert list(report["models"]) == ["sft", "karma"]
    before, after = report["models"].values()
    assert "effective_rank" not in before and 1 <= after["effective_rank"] <= 16
    assert after["decoded"]["nats"] > 0 and 0 <= after["decoded"]["jaccard"] <= 1
    for found in (before, after):
        assert found["sink_mass"]["low"] <= found["sink_mass"]["mean"] <= found["sink_mass"]["high"]
    picture = (heading_run / "eval/attention.svg").read_text()
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert all(f">{label}<" in picture for label in ("sft", "karma", "purchases", "query", "[INT]"))


def test_models_of_two_runs_are_called_by_their_folders(
    heading_run: Path, quick_probe: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "before"
    shutil.copytree(heading_run, other)
    common = ["--run", str(heading_run), "--stage", "karma", "--requests", "40", "--output", str(tmp_path / "out")]
    assert main([*common, "--against", str(other)]) == 0
    assert "| before | 0." in capsys.readouterr().out
    assert list(read_json(tmp_path / "out/attention.json")["models"]) == ["before", "run"]
    assert ">before<" in (tmp_path / "out/attention.svg").read_text()
    namesake = tmp_path / "after/run"
    shutil.copytree(heading_run, namesake)
    assert list(compared(Run.open(heading_run), "karma", str(namesake))) == [
        "after/run",
        f"{heading_run.parent.name}/run",
    ]
    for itself in ("karma", str(heading_run)):
        assert main([*common, "--against", itself]) == 2
        assert "--against: a model beside itself" in capsys.readouterr().err


def test_a_stage_that_is_not_there_is_told_in_one_line(heading_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(heading_run), "--stage", "nope"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such model" in line and "nope" in line
