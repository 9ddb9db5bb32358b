"""The comparison of tokenizers: numbers worked out by hand, every kind of entry, and the commands as typed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.tokenizer import main, measure, read_tokenizers
from eval.tokenizer_report import markdown
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.semantic_ids import Fitted
from onesearch.settings import Settings
from quantizers.residual_kmeans import ResidualKMeans

ROOT = Path(__file__).parents[2]
SMALL = """
plain: rq-kmeans
balanced: {method: rq-kmeans, balance: last}
KHQE: {method: khqe, tail: [4, 4]}
aligned: {method: rq-kmeans, align: true}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_a_row_is_what_the_codes_say() -> None:
    vectors = np.array([[0, 0], [0, 0], [0, 2], [8, 0]], np.float32)
    quantizer = ResidualKMeans((2, 4)).fit(np.unique(vectors, axis=0))
    codes = quantizer.encode(vectors)
    row = measure(Fitted(quantizer, codes, vectors, None))
    assert (row["level_sizes"], row["bits"], row["texts"]) == ([2, 4], 3.0, 3)
    assert [sum(counts) for counts in row["usage"]] == [4, 4]
    assert row["cur_of_levels"][0] == 1.0
    assert row["cur_of_prefixes"][-1] == pytest.approx(3 / 8)  # three different vectors, eight pairs of codes
    assert (row["icr"], row["icr_of_texts"]) == (0.5, 1.0)  # two items of one vector share their codes
    assert row["collisions"] == {"sequences": 3, "shared_sequences": 1, "items_sharing": 2, "largest": 2}
    assert row["entropy"][0] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert row["reconstruction_error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/tokenizers/*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_opens_with_its_command(path: Path, tmp_path: Path) -> None:
    found = {one.name: one.method for one in read_tokenizers(path, Settings(), tmp_path)}
    assert found["KHQE"].keywords and found["KHQE"].arguments["tail"] == (256, 256)
    assert path.read_text().splitlines()[0].endswith(f"--config {path.relative_to(ROOT)}")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: rq-kmean", "a: unknown method: 'rq-kmean' .did you mean 'rq-kmeans'"),
        ("a: {method: rq-kmeans, balanc: last}", "a: rq-kmeans has no such option: 'balanc' .did you mean 'balance'"),
        ("a: {method: rq-kmeans, balance: most}", "a.*'most'"),
        ("a: 3", "a: no tokenizer: 3"),
        ("{a+: rq-kmeans, A plus: rq-kmeans}", "two tokenizers of one name"),
    ],
)
def test_a_mistake_in_the_config_is_told_before_anything_is_fitted(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=problem):
        read_tokenizers(tmp_path / "c.yaml", Settings(), tmp_path)


def test_a_run_is_compared_and_what_cannot_be_is_named(
    quantized_run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(quantized_run), "--config", str(config), "--output", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert results == read_json(tmp_path / "out/tokenizer.json")
    assert list(results["tokenizers"]) == ["plain", "balanced", "KHQE"]
    assert "align" in results["left_out"]["aligned"]
    khqe = results["tokenizers"]["KHQE"]
    assert khqe["level_sizes"] == [6, 6, 4, 4]
    found = khqe["recall"]["same query"]["10"]
    assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    plain = results["tokenizers"]["plain"]
    written = np.array(read_json(quantized_run / "sid/usage.json")["usage"][0])
    assert plain["usage"][0] == written.tolist()  # what `onesearch quantize` makes of the same settings
    text = (tmp_path / "out/tokenizer.md").read_text()
    assert text == markdown(results) and "| plain | 2 x 6 |" in text and "Left out: aligned" in text
    page = (tmp_path / "out/tokenizer.html").read_text()
    assert "https://" not in page and "plain, level 1" in page
    HTMLParser().feed(page)
    start = page.index("<svg")
    ET.fromstring(page[start : page.index("</svg>", start) + 6])


def test_the_same_run_gives_the_same_numbers(quantized_run: Path, config: Path, tmp_path: Path) -> None:
    def rows(name: str) -> Any:
        main(["--run", str(quantized_run), "--config", str(config), "--output", str(tmp_path / name)])
        found = read_json(tmp_path / name / "tokenizer.json")["tokenizers"]
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in found.values()]

    assert rows("one") == rows("two")


def test_a_corpus_alone_is_embedded_first(quantized_run: Path, config: Path, tmp_path: Path) -> None:
    arguments = ["--corpus", str(quantized_run / "corpus"), "--config", str(config), "--output", str(tmp_path / "out")]
    config.write_text("plain: {method: rq-kmeans, level_sizes: [6, 6]}")
    assert main(arguments) == 0
    (row,) = read_json(tmp_path / "out/tokenizer.json")["tokenizers"].values()
    assert row["usage"] == read_json(quantized_run / "sid/usage.json")["usage"][:2]
    assert main(arguments) == 0  # over what is there


def test_a_generator_is_trained_for_the_named_ones_and_kept(
    new_run: Callable[[str], Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = new_run("mine"), tmp_path / "out"
    common = ["--run", str(run), "--config", str(config), "--output", str(out)]
    training = ["--generator", "plain", "balanced", "--steps", "5", "--seeds", "3", "4"]
    assert main([*common, *training]) == 0
    assert "| plain | 5 |" in capsys.readouterr().out
    found = read_json(out / "tokenizer.json")["tokenizers"]
    assert "generator" not in found["KHQE"]
    for name in ("plain", "balanced"):
        one = found[name]["generator"]
        assert one["steps"] == 5 and one["searches"] > 0
        assert 0 <= one["mrr@10"]["low"] <= one["mrr@10"]["mean"] <= one["recall@10"]["mean"] <= 1
        assert one["seeds"] == [3, 4] and np.mean(one["of_seeds"]["mrr@10"]) == pytest.approx(one["mrr@10"]["mean"])
        assert (out / f"runs/{name}-seed-4/corpus").is_symlink()
    change = found["balanced"]["generator"]["differences"]["mrr@10"]
    means = [found[name]["generator"]["mrr@10"]["mean"] for name in ("plain", "balanced")]
    assert change["mean"] == pytest.approx(means[1] - means[0])
    log = read_json(out / "runs/plain-seed-3/models/sft/log_history.json")
    assert max(entry["step"] for entry in log) == 5
    models = [out / f"runs/plain-seed-{seed}/models/sft/model.safetensors" for seed in (3, 4)]
    assert models[0].read_bytes() != models[1].read_bytes()
    trained = models[0].stat().st_mtime_ns
    assert main([*common, "--generator", "plain", "--steps", "5", "--seeds", "3"]) == 0
    assert models[0].stat().st_mtime_ns == trained
    assert read_json(out / "tokenizer.json")["tokenizers"]["balanced"]["generator"] == found["balanced"]["generator"]
    assert not (run / "models").exists()


def test_mistakes_on_the_command_line_are_told_in_one_line(
    quantized_run: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--run", str(quantized_run), "--config", str(config), "--output", str(tmp_path / "out")]
    for arguments, problem in (
        ([*common, "--generator", "other"], "--generator: no such tokenizer: 'other' (known: plain, balanced, KHQE"),
        ([*common, "--steps", "0"], "--steps: at least one step: 0"),
        (["--corpus", str(quantized_run / "corpus")], "--corpus needs --output"),
        (["--run", str(tmp_path / "none")], "no run here"),
    ):
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert problem in line
    assert not (tmp_path / "out/tokenizer.json").exists()
