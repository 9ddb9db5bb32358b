"""How words of queries are read: what is mended, what is left alone, and who reads it so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from made_up import write_shop

from onesearch.corpus import TRAIN, Corpus, Requests, make_split, sources
from onesearch.corpus.reader import SPELLING
from onesearch.corpus.spelling import RATIO, Spelling, mend
from onesearch.pipeline import STEPS
from onesearch.run import Run
from onesearch.settings import Settings

ITEMS = (
    ("i1", "Corn cereal"),
    ("i2", "Leather wallet"),
    ("i3", "Orange squash"),
    ("i4", "красный шарф"),
    ("i5", "红色裙子"),
)
ASKED = {
    "Cereal": 60,
    "cereel": 2,  # a typing error that two people made
    "cereals": 5,  # people ask for it too often to be one
    "wallet": 30,
    "wallat 3": 1,
    "mallet": 1,  # a word that nobody sells, and one letter from another
    "squash": RATIO - 1,
    "sqash": 1,
    "шарф": 40,
    "шарв": 1,
    "红色裙子": 40,
    "红色裤子": 1,
    "oranje cereal": 1,
}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("typed")
    items = [{"item_id": name, "title": title} for name, title in ITEMS]
    queries = [query for query, times in ASKED.items() for _ in range(times)]
    events = [
        {"user_id": f"u{n % 7}", "item_id": "i1", "event": "purchase", "timestamp": 1_700_000_000 + n, "query": query}
        for n, query in enumerate(queries)
    ]
    for table, rows in (("items", items), ("events", events)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return sources.prepare("jsonl", folder / "corpus", path=folder)


def everything(corpus: Corpus) -> np.ndarray:
    return np.ones(len(corpus.user), bool)


def test_words_one_edit_from_what_people_ask_for_are_mended(typed: Corpus) -> None:
    spelling = Spelling.learn(typed, everything(typed))
    for word, read in (
        ("cereel", "cereal"),
        ("CERAEL", "cereal"),
        ("cerel", "cereal"),
        ("cerreal", "cereal"),
        ("Cereal", "Cereal"),
        ("corn-cereel, 12oz wallett", "corn-cereal, 12oz wallet"),
        ("шарв", "шарф"),
    ):
        assert spelling.mended(word) == read


def test_what_may_be_meant_is_left_alone(typed: Corpus) -> None:
    spelling = Spelling.learn(typed, everything(typed))
    for word in ("cereals", "cer", "sqash", "红色裤子", "cirael", "oranje", "x1", ""):
        assert spelling.mended(word) == word
    assert spelling.mended("mallet") == "wallet", "nobody sells it, and one person asked"
    assert spelling.knowing(["Rubber mallet"]).mended("mallet") == "mallet", "now somebody sells it"


def test_only_training_events_teach(typed: Corpus) -> None:
    nothing = Spelling.learn(typed, np.zeros(len(typed.user), bool))
    assert nothing.mended("cereel") == "cereel" and not nothing.counts


def test_it_is_the_same_after_it_was_saved(typed: Corpus, tmp_path: Path) -> None:
    learnt = Spelling.learn(typed, everything(typed))
    learnt.save(tmp_path)
    read = Spelling.load(tmp_path)
    assert read.counts == learnt.counts and read.kept == learnt.kept == {"cereals"}
    assert Spelling.load(tmp_path / "elsewhere").mended("cereel") == "cereel"


def test_requests_of_the_log_are_read_so_and_the_log_is_as_it_was_typed(typed: Corpus) -> None:
    event = int(np.flatnonzero(typed.query == typed.queries.index("cereel"))[0])
    assert Requests.of(typed, np.array([event])).query == ["cereel"]
    assert mend(typed, everything(typed)) == len({"cereel", "wallat 3", "mallet", "шарв"})
    again = Corpus.load(typed.folder)
    assert Requests.of(again, np.array([event])).query == ["cereal"]
    assert again.info["mended_queries"] == 4
    assert again.queries == typed.queries and again.meant[again.queries.index("wallat 3")] == "wallet 3"
    assert (typed.folder / SPELLING / "words.parquet").exists()


def test_the_split_decides_what_is_learnt_from(shop: Corpus) -> None:
    spelling = Spelling.learn(shop, make_split(shop) == TRAIN)
    assert spelling.counts and not set(spelling.counts) & spelling.kept


def prepared(folder: Path, **settings: Any) -> Corpus:
    run = Run.create(folder / "run", Settings(source="jsonl", path=str(folder / "log"), **settings))
    STEPS["prepare"].do(run, lambda done, total: None)
    return Corpus.load(run.folder / "corpus")


def test_the_step_learns_it_unless_the_setting_says_no(tmp_path: Path) -> None:
    write_shop(tmp_path / "log")
    assert prepared(tmp_path).info["mended_queries"] == 0 and Spelling.load(tmp_path / "run/corpus" / SPELLING).counts
    corpus = prepared(tmp_path, spelling=False)
    assert not (corpus.folder / SPELLING).exists() and corpus.meant is corpus.queries


def test_a_log_without_clock_times_is_mended_once_its_split_is_known(tmp_path: Path) -> None:
    write_shop(tmp_path / "log")
    events = pl.read_ndjson(tmp_path / "log/events.jsonl").sort("user_id", "timestamp")
    places = events.with_columns(position=pl.int_range(pl.len()).over("user_id")).drop("timestamp")
    places.write_ndjson(tmp_path / "log/events.jsonl")
    assert "mended_queries" not in prepared(tmp_path).info, "a split by time will be refused, by the step that needs it"
    assert prepared(tmp_path, split="leave-one-out").info["mended_queries"] == 0
