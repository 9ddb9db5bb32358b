"""The alignment as a whole: it learns, finds more than before, goes on after an interruption, and tells mistakes."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import in_two_processes
from made_up import write_yaml
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onesearch.embed.alignment import Alignment
from onesearch.errors import UserError
from onesearch.files import read_json
from training.align import AlignmentArguments, AlignTrainingArguments, main, parse, train
from training.neighbours import ranks

ROOT = Path(__file__).parents[2]
NewRun = Callable[[str], Path]
SMALL = {
    "pairs": 640,
    "hidden": 32,
    "user_pairs": 1000,
    "valid_requests": 100,
    "rank": 0,
    "relevance": 0,
    "per_device_train_batch_size": 64,
    "num_train_epochs": 8,
    "warmup_steps": 3,
    "logging_steps": 1,
    "save_steps": 4,
}
EVERYTHING = {"decoupled": 0.5, "semantic": 0.5, "clusters": [4, 3]}


def options(run: Path, **more: Any) -> list[str]:
    """Command line options of a small alignment."""
    values = {"run": run, **SMALL, **more}
    return [
        part
        for name, value in values.items()
        for part in (f"--{name}", *(str(one) for one in (value if isinstance(value, list) else [value])))
    ]


def curve(run: Path, name: str = "loss") -> dict[int, float]:
    """A logged value by step."""
    return {entry["step"]: entry[name] for entry in read_json(run / "models/align/log_history.json") if name in entry}


def aligned_vectors(run: Path) -> NDArray[np.float32]:
    """(N, D) the catalogue of a run after its alignment."""
    return Alignment.load(run / "models/align").apply(np.load(run / "embeddings/vectors.npy"))


@pytest.fixture(scope="module")
def aligned_run(quantized_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = Path(shutil.copytree(quantized_run, tmp_path_factory.mktemp("aligned") / "run"))
    train(*parse(options(folder, **EVERYTHING)))
    return folder


def test_every_loss_falls(aligned_run: Path) -> None:
    for name in ("", "_query_query", "_item_item", "_query_item", "_decoupled", "_semantic"):
        values = list(curve(aligned_run, f"loss{name}").values())
        assert len(values) >= 40 and np.isfinite(values).all()
        assert np.mean(values[-5:]) < np.mean(values[:5]), name
    (step,) = curve(aligned_run, "search_recall@10_raw")
    first, parts = curve(aligned_run)[1], {name: curve(aligned_run, f"loss_{name}")[1] for name in SMALL_LOSSES}
    weights = parse(options(aligned_run, **EVERYTHING))[0].weights()
    assert first == pytest.approx(sum(weights[name] * part for name, part in parts.items()), rel=1e-3)
    assert step == max(curve(aligned_run))


SMALL_LOSSES = ("query_query", "item_item", "query_item", "decoupled", "semantic")


def test_held_out_searches_find_more_than_before(aligned_run: Path) -> None:
    log = read_json(aligned_run / "models/align/log_history.json")[-1]
    assert log["valid_searches"] > 30 and log["valid_together"] > 30
    assert log["search_recall@10_aligned"] >= log["search_recall@10_raw"]
    assert 0 < log["together_recall@10_raw"] <= 1 and 0 < log["together_recall@10_aligned"] <= 1


def test_it_leaves_the_map(aligned_run: Path) -> None:
    names = {path.name for path in (aligned_run / "models/align").iterdir()}
    assert names == {"config.json", "model.safetensors", "log_history.json"}
    vectors = np.load(aligned_run / "embeddings/vectors.npy")
    aligned = aligned_vectors(aligned_run)
    assert np.abs(aligned - vectors).max() > 0.01
    np.testing.assert_allclose(np.linalg.norm(aligned, axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_map(new_run: NewRun) -> None:
    short = {"max_steps": 5, **EVERYTHING}
    runs = [new_run(name) for name in ("one", "other", "seeded")]
    for run, seed in zip(runs, (7, 7, 8), strict=True):
        train(*parse(options(run, **short, seed=seed)))
    one, other, seeded = (aligned_vectors(run) for run in runs)
    np.testing.assert_array_equal(one, other)
    assert (one != seeded).any()


def interrupted_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_alignment_ends_like_an_uninterrupted_one(new_run: NewRun) -> None:
    short = {"max_steps": 10}
    whole, broken = new_run("whole"), new_run("broken")
    train(*parse(options(whole, **short)))
    with pytest.raises(KeyboardInterrupt):
        train(*parse(options(broken, **short)), interrupted_at(7))
    assert not (broken / "models/align/config.json").exists()
    steps: list[int] = []
    train(*parse(options(broken, **short)), lambda done, total: steps.append(done))
    assert steps == list(range(5, 11)), "it went on after the checkpoint"
    assert curve(broken) == pytest.approx(curve(whole), rel=1e-5)
    one, other = (aligned_vectors(run) for run in (whole, broken))
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_checkpoint_of_other_weights_is_not_gone_on_with(new_run: NewRun) -> None:
    run = new_run("run")
    with pytest.raises(KeyboardInterrupt):
        train(*parse(options(run, max_steps=10)), interrupted_at(7))
    steps: list[int] = []
    train(*parse(options(run, max_steps=10, item_item=0.25)), lambda done, total: steps.append(done))
    assert steps[0] == 1


def test_graded_relevance_is_learnt_without_a_log_of_queries(new_run: NewRun) -> None:
    """Judgements alone: opposite grades for two shelves end up at opposite cosines."""
    import polars as pl

    run = new_run("graded")
    titles = pl.read_parquet(run / "corpus/items.parquet")
    judged = titles.select(
        pl.lit("something hot to drink").alias("query"),
        "item_id",
        pl.col("title").str.starts_with("ground coffee").cast(pl.Float64).alias("grade"),
    )
    judged.write_parquet(run / "corpus/relevance.parquet")
    more = {"query_query": 0, "item_item": 0, "query_item": 0, "relevance": 1}
    train(*parse(options(run, **more, per_device_train_batch_size=16, num_train_epochs=60, learning_rate=3e-3)))
    losses = list(curve(run, "loss_relevance").values())
    assert np.mean(losses[-5:]) < 0.2 * np.mean(losses[:5])


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(new_run: NewRun) -> None:
    """`accelerate launch`, and one process with the same global batch: one loss curve and one map."""
    curves, maps = {}, {}
    for processes in (1, 2):
        run = new_run(f"with_{processes}")
        arguments = options(run, **EVERYTHING, max_steps=12, per_device_train_batch_size=64 // processes)
        if processes > 1:
            assert "query to item bought @10" in in_two_processes("training/align.py", arguments)
        else:
            with threadpool_limits(1):
                train(*parse(arguments))
        curves[processes] = {name: curve(run, f"loss_{name}") for name in SMALL_LOSSES} | {"": curve(run)}
        maps[processes] = aligned_vectors(run)
    assert len(curves[1][""]) == 12
    for name, values in curves[1].items():
        assert curves[2][name] == pytest.approx(values, rel=1e-3), name
    np.testing.assert_allclose(maps[2], maps[1], atol=1e-3)
    assert curves[1][""][12] < curves[1][""][1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query_item": -1.0}, r"query_item: a weight is not negative: -1.0"),
        ({"query_item": 0, "item_item": 0, "query_query": 0}, "every loss is off"),
        ({"swing": 1.5}, "swing: a share lies between 0 and 1: 1.5"),
        ({"temperature": 0}, "temperature: the temperature is positive"),
        ({"semantic": 1, "clusters": [4]}, r"clusters: semantic negatives need two sizes: \[4\]"),
        ({"dimension": 1000}, r"dimension: the aligned vectors cannot be that wide: 1000 \(use 1 to 256"),
        ({"per_device_train_batch_size": 100_000}, r"fewer pairs than one batch.*lower --per_device_train_batch_size"),
        ({"min_cosine": 1.5}, r"fewer pairs than one batch: 0 .*--min_cosine"),
    ],
)
def test_mistakes_are_told(new_run: NewRun, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train(*parse(options(new_run("mistaken"), **given, output_dir=tmp_path)))


def test_losses_that_the_log_has_nothing_for_are_named(new_run: NewRun, caplog: pytest.LogCaptureFixture) -> None:
    train(*parse(options(new_run("run"), max_steps=1, rank=1, relevance=1)))
    assert "these losses are off: rank, relevance" in caplog.text


def test_without_vectors_it_says_what_to_do(new_run: NewRun) -> None:
    run = new_run("run")
    (run / "embeddings/vectors.npy").unlink()
    with pytest.raises(UserError, match=r"no vectors of the catalogue \(run `onesearch embed` first\)"):
        train(*parse(options(run)))


def test_an_option_that_does_not_exist_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path / "align.yaml", {"temprature": 0.1})
    monkeypatch.setattr(sys, "argv", ["align.py", "--config", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"onesearch: {config}: unknown option: 'temprature' (did you mean 'temperature'?)"


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/demo/align*.yaml")), ids=lambda path: path.parent.name)
def test_every_config_is_valid_and_opens_with_its_command(config: Path) -> None:
    parse(["--config", str(config)])[0].check()
    command = config.read_text(encoding="utf-8").splitlines()[0]
    assert command == f"# accelerate launch training/align.py --config {config.relative_to(ROOT)}"


def test_defaults_are_those_of_the_classes() -> None:
    given, args = parse([])
    assert given == AlignmentArguments()
    assert args.learning_rate == AlignTrainingArguments.learning_rate


def test_ranks_by_hand() -> None:
    items = np.array([[1, 0], [0, 1], [1, 0], [0.6, 0.8]], np.float32)  # items 0 and 2 have one text
    text, popularity = np.array([0, 1, 0, 2]), np.array([1, 9, 5, 9])
    asked = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    found = ranks(asked, items, text, popularity, np.array([2, 0, 3, 3, 2]))
    # 2 before 0 by popularity; text 2 behind both; behind item 1 alone; a vector of zeros is as near to everything.
    assert found.tolist() == [0, 1, 2, 1, 2]
    own = ranks(items[[0, 3]], items, text, popularity, np.array([3, 0]), left_out=text[[0, 3]])
    assert own.tolist() == [0, 2], "an item's own text is no answer"
