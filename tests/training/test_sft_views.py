"""Training with every view of the user, from the YAML to an answered search."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_up import TINY, write_yaml
from transformers import BartConfig

from eval.generator import GeneratorSystem
from onesearch.context.views.settings import VIEWS
from onesearch.corpus import TEST, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.model import Generator
from onesearch.readers.generator import GeneratorReader
from onesearch.retriever import Request, Retriever
from training.sft import main, parse, train

NewRun = Callable[[str], Path]
SHORT = {"max_steps": 8, "eval_steps": 8, "save_strategy": "no"}


@pytest.fixture
def known_users(new_run: NewRun) -> Path:
    """A run whose users have attributes, and whose events a place and a device."""
    run = new_run("run")
    for column, name in (("place", "north"), ("device", "phone")):
        pl.DataFrame({column: [name]}).write_parquet(run / f"corpus/arrays/{column}s.parquet")
        path = run / f"corpus/arrays/{column}.npy"
        np.save(path, np.arange(len(np.load(path)), dtype=np.int32) % 2 - 1)
    path = run / "corpus/users.parquet"
    users = pl.read_parquet(path)
    age = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("young")).otherwise(pl.lit("old"))
    users.with_columns(attributes=pl.concat_list(pl.struct(name=pl.lit("age"), value=age))).write_parquet(path)
    return run


def trained(run: Path, tmp_path: Path, **options: Any) -> Path:
    """Train with a YAML; the folder of the model."""
    config = write_yaml(tmp_path / "sft.yaml", {**TINY, **SHORT, "run": str(run), **options})
    train(*parse(["--config", str(config)]))
    return run / "models/sft"


def reader_of(retriever: Retriever) -> GeneratorReader:
    assert isinstance(retriever.reader, GeneratorReader)
    return retriever.reader


@pytest.mark.parametrize("way", [{}, {"uid": "paper", "long": "lrea", "past_queries": 3, "long_tokens": 2}])
def test_all_views_from_the_yaml_to_an_answer(known_users: Path, tmp_path: Path, way: dict[str, Any]) -> None:
    model = trained(known_users, tmp_path, views=list(VIEWS), **way)
    context, config = read_json(model / "context.json"), read_json(model / "config.json")
    assert context["views"] == list(VIEWS) and set(config["views"]) == set(VIEWS)
    assert config["views"]["long"]["way"] == context["long"] == way.get("long", "qformer")
    levels = 2 if context["uid"] == "nearest" else 3  # the quantizer's, without the level of ranks; all of them
    assert config["views"]["uid"]["levels"] == levels
    assert read_json(model / "profile.json") == [["age", "old"], ["age", "young"]]
    retriever = Retriever.load(known_users)
    requests = sample_requests(retriever.corpus, make_split(retriever.corpus), TEST, 20, seed=0)
    inputs, _ = reader_of(retriever).builder.inputs(requests)
    assert inputs["views"]["uid_codes"].shape == (len(requests), 2, levels)
    items, _ = retriever.rank(requests, 5)
    assert (items >= 0).all()
    again, _ = Retriever.load(known_users).rank(requests, 5)
    np.testing.assert_array_equal(items, again)
    known, stranger = retriever.search([Request("cold cereal", "u0"), Request("cold cereal", "nobody")], 3)
    assert len(known.hits) == len(stranger.hits) == 3 and not stranger.known_user


def test_what_does_not_fit_is_told_once_for_training_validation_and_evaluation(
    known_users: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """48 positions: 32 tokens of a query at most, and 14 of its vector and of views that are never dropped."""
    sizes = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
    halves = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in sizes.items()}
    backbone = BartConfig(d_model=32, **halves, max_position_embeddings=48, forced_eos_token_id=None)
    backbone.save_pretrained(tmp_path / "backbone")
    more = {"slots": 24, "past_queries": 24, "backbone": str(tmp_path / "backbone")}
    with caplog.at_level(logging.WARNING, "onesearch.context.views.room"):
        trained(known_users, tmp_path, views=list(VIEWS), **more)
        retriever = Retriever.load(known_users)
        requests = sample_requests(retriever.corpus, make_split(retriever.corpus), TEST, 30, seed=0)
        GeneratorSystem(retriever).rank(requests, 5)
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == ["training", "validation", "evaluation"]
    assert all("did not fit into 48 positions" in message for message in messages)
    assert "of 40 requests" in messages[1] and "of 30 requests" in messages[2]
    assert Generator.from_pretrained(known_users / "models/sft").config.backbone.max_position_embeddings == 48


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": ["uid", "pofile"]}, "views: unknown name: 'pofile'"),
        ({"views": ["profile"]}, "users.parquet: the view 'profile' needs what the log does not have"),
        ({"views": ["long"], "long_tokens": 250}, "the query and the views of the user need 283 positions: 256"),
    ],
)
def test_a_view_that_cannot_be_is_told_in_one_line(
    quantized_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    values = {**TINY, "run": str(quantized_run), "output_dir": str(tmp_path / "out"), **options}
    config = write_yaml(tmp_path / "sft.yaml", values)
    monkeypatch.setattr("sys.argv", ["sft.py", "--config", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_unknown_name_is_told_before_the_run_is_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown name"):
        train(*parse(["--run", str(tmp_path / "none"), "--history", "newest"]))


def test_without_history_nothing_of_the_past_is_read(known_users: Path, tmp_path: Path) -> None:
    trained(known_users, tmp_path, history="none")
    retriever = Retriever.load(known_users)
    requests = sample_requests(retriever.corpus, make_split(retriever.corpus), TEST, 20, seed=0)
    inputs, slots = reader_of(retriever).builder.inputs(requests)
    assert (slots.item == -1).all() and (inputs["slot_codes"] == -1).all() and "views" not in inputs
    assert retriever.search([Request("cold cereal", "u0")], 3)[0].given == []
