"""New codebooks for a changed assortment, by the command line: what they see, what is kept, what is to be done next."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import KINDS
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.retriever import Request, Retriever
from onesearch.run import stamps
from onesearch.sid import SidTable
from quantizers import ResidualKMeans, load_quantizer


def onesearch(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = onesearch(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join((result.stdout + result.stderr).split())


def told(*arguments: str | Path) -> str:
    result = onesearch(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return str(line)


def changed(run: Path) -> None:
    """Sixty items unlike the others come, two go."""
    rows = [{"item_id": f"o{n}", "title": f"quantum {KINDS[n % 6]} lattice {n * n}"} for n in range(60)]
    path = run.parent / "new.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = json.loads(done("quantize", "--run", run, "--add", path, "--remove", "i4", "--remove", "i5", "--json"))
    assert shown["refit_due"]
    assert any("`onesearch quantize --refit`" in note and "train again" in note for note in shown["notes"])


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def test_a_refit_sees_what_is_on_sale_and_is_the_next_version(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    changed(run)
    assert "already done" in done("quantize", "--run", run), "without --refit the codebooks stay"
    old = SidTable.load(run / "sid")
    report = json.loads(onesearch("quantize", "--run", run, "--refit", "--json").stdout)
    assert (report["version"], report["items"], report["put_aside"]) == (3, 106, [])
    new = SidTable.load(run / "sid")
    assert [one["change"] for one in new.history] == ["fit", "assortment", "fit"]
    np.testing.assert_array_equal(new.removed, old.removed)
    assert [new.item_ids[int(item)] for item in np.flatnonzero(new.removed)] == ["i4", "i5"]
    assert len(new.fitted) == 106 and new.fit_version == 3
    assert report["moved"] == sum(old.text(item) != new.text(item) for item in new.on_sale)
    vectors = np.load(run / "embeddings/vectors.npy")
    expected = ResidualKMeans((6, 6), seed=7).fit(np.unique(vectors[new.on_sale], axis=0))
    found = load_quantizer(run / "sid/quantizer")
    np.testing.assert_array_equal(found.decode(found.encode(vectors)), expected.decode(expected.encode(vectors)))
    np.testing.assert_array_equal(new.codes[:, 0], expected.encode(vectors)[:, 0])
    assert "already done" in done("quantize", "--run", run)


def test_what_the_old_codebooks_made_is_kept_and_can_be_put_back(run: Path) -> None:
    changed(run)
    before = {name: stamps(run / name) for name in ("sid", "models")}
    answers = Retriever.load(run).search([Request("cold cereal", "u3")], 5)
    shown = done("quantize", "--run", run, "--refit")
    assert "new codebooks, version 3" in shown and "run `onesearch train --run" in shown
    assert {name: stamps(run / "versions/2" / name) for name in ("sid", "models")} == before
    assert stamps(run / "sid") != before["sid"]
    assert "no trained generator" in told("generate", "--run", run, "--query", "cereal"), (
        "not answered with other items"
    )
    shutil.rmtree(run / "sid")
    for name in ("sid", "models"):
        if (run / name).exists():
            (run / name).rmdir()
        (run / "versions/2" / name).rename(run / name)
    assert Retriever.load(run).search([Request("cold cereal", "u3")], 5) == answers


def test_a_generator_trained_after_it_knows_the_new_semantic_ids(run: Path) -> None:
    changed(run)
    done("quantize", "--run", run, "--refit")
    done("train", "--run", run)
    (answer,) = Retriever.load(run).search([Request("coffee", "u3")], 5)
    table = SidTable.load(run / "sid")
    assert answer.hits and "coffee" in answer.hits[0].title
    assert {hit.sid for hit in answer.hits} <= {table.text(item) for item in table.on_sale}


def test_a_refit_that_fails_leaves_the_run_as_it_was(run: Path) -> None:
    vectors = np.load(run / "embeddings/vectors.npy")
    vectors[5, 3] = np.nan
    np.save(run / "embeddings/vectors.npy", vectors)
    before = {name: stamps(run / name) for name in ("sid", "models")}
    assert "this vector is not finite" in told("quantize", "--run", run, "--refit")
    assert {name: stamps(run / name) for name in ("sid", "models")} == before
    assert not (run / "versions/1").exists()


def test_what_a_refit_needs_is_told(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    assert "--refit or --method in another command" in told("quantize", "--run", run, "--refit", "--remove", "i4")
    assert "--method and --refit change" in told("quantize", "--run", run, "--refit", "--query", "cereal")
    shutil.rmtree(run / "sid")
    assert "no semantic IDs here yet" in told("quantize", "--run", run, "--refit")
