"""What the losses of KARMA are told, and training with them from the YAML to an answer by interest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import TINY, write_shop, write_yaml

from onesearch.context.tokenizer import QueryTokenizer
from onesearch.corpus import TRAIN, VALID, Corpus, make_split, sample_requests, sources
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.retriever import Request, Retriever
from onesearch.where import Filter
from training.karma import SHOWN, TEXT_TOKENS, Shown, item_tokens
from training.modes import SHARES
from training.sft import main, parse, train

IMPRESSION, CLICK, PURCHASE = (EVENT_KINDS.index(name) for name in ("impression", "click", "purchase"))
NewRun = Callable[[str], Path]


def test_texts_end_and_long_ones_are_cut() -> None:
    tokenizer = QueryTokenizer.train(["dish soap", "orange juice large " * 20])
    text = item_tokens(tokenizer, ["dish soap", "", "orange juice large " * 20])
    assert text.shape == (3, TEXT_TOKENS)
    ids, _ = tokenizer.encode(["dish soap"], 99)
    assert text[0].tolist() == [*ids, tokenizer.begin] + [0] * (TEXT_TOKENS - len(ids) - 1)
    assert text[1].tolist() == [tokenizer.begin] + [0] * (TEXT_TOKENS - 1)
    assert (text[2] > 0).all() and text[2, -1] == tokenizer.begin


def corpus_of(shop: Corpus, events: list[tuple[int, int, int, int]]) -> Corpus:
    """The first events of the shop's log as (session, query, kind, item), of one user in one order."""
    session, query, kind, item = (np.array(column) for column in zip(*events, strict=True))
    first = [session.tolist().index(one) for one in session]
    return replace(
        shop,
        session=session.astype(np.int32),
        query=query.astype(np.int32),
        kind=kind.astype(np.int8),
        item=item.astype(np.int32),
        history_end=np.array(first, np.int64),
    )


def test_shown_are_the_items_of_the_request_that_nobody_took(shop: Corpus) -> None:
    log = [
        (1, 0, IMPRESSION, 3),
        (1, 0, IMPRESSION, 4),
        (1, 0, IMPRESSION, 5),
        (1, 0, IMPRESSION, 5),  # shown twice
        (1, 0, CLICK, 4),
        (1, 0, PURCHASE, 3),
        (1, 1, PURCHASE, 8),  # another query of the session, with nothing shown
        (2, 0, PURCHASE, 3),  # the same query in another session
        (3, 1, IMPRESSION, 6),  # a held-out impression
        (3, 1, PURCHASE, 7),
    ]
    corpus = corpus_of(shop, log)
    training = np.array([True] * 8 + [False] * 2)
    shown = Shown(corpus, training)
    assert shown.any
    np.testing.assert_array_equal(shown(np.array([5, 6, 7, 9])), [[5], [-1], [-1], [-1]])
    with_all = Shown(corpus, np.ones(len(log), bool))
    np.testing.assert_array_equal(with_all(np.array([5, 9])), [[5], [6]])
    many = corpus_of(shop, [(1, 0, IMPRESSION, item) for item in range(SHOWN + 5)] + [(1, 0, PURCHASE, 40)])
    np.testing.assert_array_equal(Shown(many, np.ones(SHOWN + 6, bool))(np.array([SHOWN + 5])), [np.arange(SHOWN)])


def test_a_log_without_impressions_has_nothing_that_was_shown(shop: Corpus) -> None:
    assert not Shown(shop, np.ones(len(shop.kind), bool)).any
    everything_taken = corpus_of(shop, [(1, 0, IMPRESSION, 3), (1, 0, PURCHASE, 3)])
    assert (Shown(everything_taken, np.ones(2, bool))(np.array([1])) == -1).all()


def trained(run: Path, tmp_path: Path, **options: Any) -> Path:
    values = {**TINY, "eval_strategy": "no", "save_strategy": "no", "run": str(run), **options}
    train(*parse(["--config", str(write_yaml(tmp_path / "sft.yaml", values))]))
    return run / "models/sft"


def test_from_the_yaml_to_the_items_nearest_to_what_is_wanted(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("run")
    weights = {"generate": 0.1, "reconstruct": 0.1, "regress": 0.1}
    folder = trained(run, tmp_path, interest=16, num_train_epochs=4, **weights)
    config = read_json(folder / "config.json")
    assert config["interest"] == 16 and not any(config[name] for name in weights)
    measured = {name: value for entry in read_json(folder / "log_history.json") for name, value in entry.items()}
    assert all(measured[name] > 0 for name in ("action", *weights))
    assert {"valid_mrr@10", "valid_interest_mrr@10", "valid_interest_recall@200"} <= set(measured)
    assert measured["valid_ndcg@10 both"] >= 0.9 * measured["valid_mrr@10"]
    assert config["interest_share"] in SHARES
    retriever = Retriever.load(run)
    assert retriever.reader.interest.share == config["interest_share"]
    corpus = retriever.corpus
    requests = sample_requests(corpus, make_split(corpus), VALID, 40, seed=0)
    items, _ = retriever.rank(requests, 5, mode="interest")
    found = (items == requests.target[:, None]).any(1).mean()
    assert found > 3 * 5 / len(corpus.items), "far better than chance"
    filters = [Filter(allow=("i0", "i1", "i2"))] * len(requests)
    few, score = retriever.rank(requests, 5, filters=filters, mode="interest")
    allowed = np.flatnonzero(corpus.items["item_id"].is_in(["i0", "i1", "i2"]))
    assert (np.sort(few[:, :3], 1) == allowed).all() and (few[:, 3:] == -1).all()
    assert (score[:, :2] >= score[:, 1:3]).all()
    both = retriever.search([Request("cold cereal", "u0")], 3, mode="both")[0]
    assert len(both.hits) == 3 and "cold cereal" in both.hits[0].title


def test_impressions_of_a_log_reach_the_training(new_run: NewRun, tmp_path: Path) -> None:
    """Every third event becomes an impression beside the purchases of its basket, all in answer to one query."""
    run, log = new_run("run"), write_shop(tmp_path / "log")
    events = [json.loads(line) for line in (log / "events.jsonl").read_text().splitlines()]
    for number, event in enumerate(events):
        event.update(query="cold cereal", event="purchase" if number % 3 else "impression")
    (log / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    shutil.rmtree(run / "corpus")
    corpus = sources.prepare("jsonl", run / "corpus", path=log)
    training = make_split(corpus) == TRAIN
    assert (Shown(corpus, training)(np.flatnonzero(training & (corpus.kind == PURCHASE))) >= 0).any()
    folder = trained(run, tmp_path, interest=16, max_steps=4)
    assert read_json(folder / "config.json")["interest"] == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reconstruct": 0.1}, "reconstruct: there is no interest vector to decode: 0.1"),
        ({"regress": 0.1}, "regress: there is no interest vector to decode: 0.1"),
        ({"interest": 16, "action": 0.0}, "interest: nothing teaches the interest vector: 16"),
        ({"interest": 16, "soft_tokens": 5}, "soft_tokens: not a number of soft tokens: 5"),
        ({"generate": -0.1}, "generate: must not be negative: -0.1"),
    ],
)
def test_what_cannot_be_is_told_before_the_run_is_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    message: str,
) -> None:
    config = write_yaml(tmp_path / "sft.yaml", {"run": str(tmp_path / "none"), "output_dir": str(tmp_path), **options})
    monkeypatch.setattr("sys.argv", ["sft.py", "--config", str(config)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_interest_position_takes_one_of_the_encoders(quantized_run: Path, tmp_path: Path) -> None:
    """The query, its vector and 223 soft tokens fill all 256 of them."""
    options = {"views": ["long"], "long_tokens": 223, "output_dir": str(tmp_path / "out")}
    with pytest.raises(UserError, match="need 256 positions: 255"):
        trained(quantized_run, tmp_path, interest=16, **options)
