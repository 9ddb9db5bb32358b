"""Semantic IDs by every method, driven from the command line on the made-up shop."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import KINDS, write_yaml
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.corpus import TRAIN, Corpus, item_texts, make_split
from onesearch.embed import load_text_encoder
from onesearch.embed.alignment import Alignment, Projection
from onesearch.run import Run
from onesearch.semantic_ids import SEARCHES, _searches
from onesearch.sid import SidTable
from quantizers import ResidualKMeans, append_rank_level, load_quantizer

ALIGNMENT = {"pairs": 320, "hidden": 16, "per_device_train_batch_size": 64, "valid_requests": 50}
QUICK = "level_sizes: [6, 4]\nlast_level: 8\n"
METHODS = {
    "rq-kmeans": "method: rq-kmeans\n" + QUICK,
    "rq-kmeans-aligned": "method: rq-kmeans-aligned\n" + QUICK,
    "rq-kmeans-5": "method: rq-kmeans-5\nlevel_sizes: [3, 3, 3, 3, 3]\n",
    "balanced": "method: rq-kmeans\nbalance: last\nslack: 1.0\n" + QUICK,
    "per-prefix": "method: rq-kmeans\nbalance: per_prefix\n" + QUICK,
    "behaviour": "method: rq-kmeans\nbehaviour: 0.3\nqueries: true\n" + QUICK,
    "khqe": "method: khqe\n" + QUICK,
    "rq-vae": "method: rq-vae\nsteps: 20\nlatent: 8\nhidden: [16]\n" + QUICK,
    "rq-kmeans-plus": "method: rq-kmeans-plus\nsteps: 20\n" + QUICK,
    "fsq": "method: fsq\nscalars: [[3, 2], [2, 2]]\nsteps: 20\nlast_level: 48\n",
    "vrq": "method: vrq\nlast_level: 24\nlevel_sizes: [6, 4]\n",
}


def quantize(run: Path, *arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["quantize", "--run", str(run), *map(str, arguments)])


def told(result: Any) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return str(line)


def written(folder: Path, text: str) -> Path:
    path = folder / "method.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_each_item_a_semantic_id_of_its_own(
    new_run: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    run, path = new_run("run"), written(tmp_path, METHODS[name])
    Run.create(run, replace(Run.open(run).settings, align=str(write_yaml(tmp_path / "align.yaml", ALIGNMENT))))
    done = quantize(run, "--method", path)
    assert done.exit_code == 0, done.output
    assert Run.open(run).settings.method == str(path)
    table, quantizer = SidTable.load(run / "sid"), load_quantizer(run / "sid/quantizer")
    assert len(np.unique(table.codes, axis=0)) == len(table.codes) == 48
    assert table.level_sizes[:-1] == tuple(quantizer.level_sizes)
    about = json.loads((run / "sid/usage.json").read_text())
    assert [len(counts) for counts in about["usage"]] == about["level_sizes"] == list(table.level_sizes)
    assert [sum(counts) for counts in about["usage"]] == [48] * len(table.level_sizes)
    assert about["metrics"]["codes_in_use"] == [len(np.unique(column)) for column in table.codes.T]
    asked = quantize(run, "--query", "cold cereal", "--json")
    assert asked.exit_code == 0, asked.output
    answer = json.loads(asked.stdout)
    assert len(answer["codes"]) == len(quantizer.level_sizes)
    assert quantize(run, "--query", "cold cereal").stdout.strip() == answer["sid"]
    assert "already done" in quantize(run).stderr


def test_the_default_is_plain_residual_kmeans_of_the_texts(quantized_run: Path) -> None:
    vectors = np.load(quantized_run / "embeddings/vectors.npy")
    quantizer = ResidualKMeans((6, 6), seed=7).fit(np.unique(vectors, axis=0))
    table = SidTable.load(quantized_run / "sid")
    expected = append_rank_level(quantizer.encode(vectors), table.order, 8)
    np.testing.assert_array_equal(table.codes, expected)


def test_an_item_and_a_query_of_the_same_words_and_keywords_have_the_same_codes(
    new_run: Callable[[str], Path], tmp_path: Path
) -> None:
    """Aligned, drawn to keywords, encoded: both go the same way."""
    run = new_run("run")
    encoder = load_text_encoder("wordllama")
    Alignment(Projection(encoder.dimension, 32, 16, seed=1), "wordllama").save(run / "models/align")
    text = "method: rq-kmeans\nkeywords: true\nqueries: true\nalign: true\nlast_level: 48\nlevel_sizes: [6, 6]\n"
    assert quantize(run, "--method", written(tmp_path, text)).exit_code == 0
    items = item_texts(Corpus.load(run / "corpus"))
    for item in (0, 20, 47):
        answer = json.loads(quantize(run, "--query", items[item], "--json").stdout)
        assert answer["codes"] == SidTable.load(run / "sid").codes[item, :2].tolist()
        assert answer["keywords"], "the brand at least"
    before = (run / "sid/recipe/align/model.safetensors").read_bytes()
    Alignment(Projection(encoder.dimension, 32, 16, seed=2), "wordllama").save(run / "models/align")
    assert "already done" not in quantize(run).stderr, "another alignment, other semantic IDs"
    assert (run / "sid/recipe/align/model.safetensors").read_bytes() != before


def test_true_capacities_hold_for_the_items(new_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = new_run("run")
    assert quantize(run, "--method", written(tmp_path, METHODS["balanced"])).exit_code == 0
    assert np.bincount(SidTable.load(run / "sid").codes[:, 1]).max() <= 12  # 48 items, 4 codes, slack 1


def test_without_the_last_level_items_share_semantic_ids(new_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = new_run("run")
    text = "method: rq-kmeans\nlevel_sizes: [2, 2]\nlast_level: null\n"
    assert quantize(run, "--method", written(tmp_path, text)).exit_code == 0
    assert SidTable.load(run / "sid").codes.shape == (48, 2)


def test_the_views_of_a_product_are_the_training_searches_that_most_often_led_to_it(shop: Any) -> None:
    split = make_split(shop)
    query, item = _searches(shop, split)
    assert np.bincount(item).max() <= SEARCHES
    for one in (0, 11, 40):
        mine = shop.query[(split == TRAIN) & (shop.item == one) & (shop.query >= 0)]
        count = np.bincount(mine, minlength=len(shop.queries))
        chosen = query[item == one]
        assert len(chosen) == min(SEARCHES, (count > 0).sum())
        assert count[chosen].min() >= np.delete(count, chosen).max()
        assert all(shop.queries[q].startswith(KINDS[one // 8]) for q in chosen)


def test_a_level_that_uses_less_than_half_of_its_codes_is_told(
    new_run: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "method: rq-kmeans\nlevel_sizes: [200, 2]\nlast_level: 48\n"
    with caplog.at_level(logging.WARNING):
        assert quantize(new_run("run"), "--method", written(tmp_path, text)).exit_code == 0
    (line,) = [record.getMessage() for record in caplog.records if "codes" in record.getMessage()]
    assert line.startswith("level a uses ") and "of its 200 codes for 48 items" in line


def test_mistakes_leave_the_run_as_it_was(new_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = new_run("run")
    before = (run / "config.yaml").read_text(), (run / "manifest.json").read_text()
    assert "did you mean 'khqe'?" in told(quantize(run, "--method", "kqhe"))
    assert "did you mean 'slack'?" in told(quantize(run, "--method", written(tmp_path, "method: khqe\nslac: 2\n")))
    assert "give one of them" in told(quantize(run, "--method", "khqe", "--query", "cereal"))
    assert "blank query" in told(quantize(run, "--query", " "))
    assert ((run / "config.yaml").read_text(), (run / "manifest.json").read_text()) == before


@pytest.mark.parametrize(
    "text, line",
    [
        ("method: vrq\nviews: pictures\n", "no vectors of pictures here"),
        ("method: rq-kmeans\nlevel_sizes: [1, 1]\nlast_level: 8\n", "last_level: 48 items share the codes"),
    ],
)
def test_what_a_method_lacks_is_told_with_its_remedy(
    new_run: Callable[[str], Path], tmp_path: Path, text: str, line: str
) -> None:
    assert line in told(quantize(new_run("run"), "--method", written(tmp_path, text)))


def test_a_method_that_wants_an_alignment_gets_one_and_keeps_what_was_made_by_hand(
    new_run: Callable[[str], Path], tmp_path: Path
) -> None:
    run, made = new_run("run"), Path("models/align/model.safetensors")
    path = written(tmp_path, "method: rq-kmeans\nalign: true\n" + QUICK)
    Run.create(run, replace(Run.open(run).settings, align=str(write_yaml(tmp_path / "align.yaml", ALIGNMENT))))
    first = quantize(run, "--method", path)
    assert first.exit_code == 0 and "align vectors with the log" in first.stderr
    learnt = (run / made).read_bytes()
    assert (run / "sid/recipe/align/model.safetensors").read_bytes() == learnt
    assert quantize(run).stderr.count("already done") == 2
    write_yaml(tmp_path / "align.yaml", {**ALIGNMENT, "learning_rate": 1e-4})
    assert "already done" not in quantize(run).stderr, "learnt otherwise, other semantic IDs"
    assert (run / made).read_bytes() != learnt

    other = new_run("other")
    encoder = load_text_encoder("wordllama")
    Alignment(Projection(encoder.dimension, 32, 16, seed=1), "wordllama").save(other / "models/align")
    by_hand = (other / made).read_bytes()
    done = quantize(other, "--method", path)
    assert done.exit_code == 0 and "align vectors" not in done.stderr
    assert (other / made).read_bytes() == by_hand


def test_a_broken_vector_is_told_by_row_and_item(new_run: Callable[[str], Path]) -> None:
    run = new_run("run")
    vectors = np.load(run / "embeddings/vectors.npy")
    vectors[5, 3] = np.nan
    np.save(run / "embeddings/vectors.npy", vectors)
    line = told(quantize(run))
    assert "vectors.npy row 5 (item i5): this vector is not finite (run `onesearch embed` again)" in line


def test_a_query_needs_semantic_ids_that_say_how_they_were_made(new_run: Callable[[str], Path]) -> None:
    import shutil

    run = new_run("run")
    shutil.rmtree(run / "sid/recipe")
    assert "run `onesearch quantize` again" in told(quantize(run, "--query", "cereal"))
    shutil.rmtree(run / "sid")
    assert "no semantic IDs here yet" in told(quantize(run, "--query", "cereal"))
