"""Lists that a log has shown, what was done with them, and what the inverse chance to look makes of clicks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from alignments import curve
from made_up import write_yaml
from numpy.typing import NDArray

from onesearch.corpus import TRAIN, Corpus, Requests, make_split, sources
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.retriever import Retriever
from onesearch.run import Run
from onesearch.search.scores import item_log_prob
from onesearch.sid import SidTable
from training import grpo
from training.rl.logged import COLUMNS, LoggedLists, examination, inverse_propensity
from training.rl.rewards import Known, Rewards

IMPRESSION, CLICK, PURCHASE = (EVENT_KINDS.index(kind) for kind in ("impression", "click", "purchase"))
NAMES = ("user_id", "session_id", "query", "item_id", "event", "rank")
LOG = [
    ("u0", "a", "tea", "i2", "impression", 0),
    ("u0", "a", "tea", "i0", "impression", 1),
    ("u0", "a", "tea", "i3", "impression", 2),
    ("u0", "a", "tea", "i0", "click", 1),
    ("u0", "a", "tea", "i0", "purchase", None),
    ("u0", "a", "tea", "i4", "purchase", None),  # was not shown
    ("u0", "a", "soap", "i1", "impression", 0),
    ("u0", "b", "tea", "i3", "impression", 0),
    ("u0", "b", "tea", "i3", "click", 0),
    ("u1", "c", "tea", "i4", "purchase", None),  # nothing was shown
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("log")
    rows = {
        "items": [{"item_id": f"i{n}", "title": f"thing {n}"} for n in range(5)],
        "events": [
            {**dict(zip(NAMES, row, strict=True)), "timestamp": time} for time, row in enumerate(LOG, 1_700_000_000)
        ],
    }
    for name, table in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in table)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return sources.prepare("jsonl", folder / "corpus", path=folder)


def event_of(corpus: Corpus, session: str, query: str) -> int:
    """Some event of a search."""
    place = next(n for n, row in enumerate(LOG) if row[1:3] == (session, query))
    return int(np.flatnonzero(corpus.time == 1_700_000_000 + place)[0])


def test_a_search_finds_its_own_list_in_the_order_of_ranks(corpus: Corpus) -> None:
    lists = LoggedLists.of(corpus, np.arange(len(corpus.user)), 4)
    asked = [event_of(corpus, *search) for search in (("a", "tea"), ("a", "soap"), ("b", "tea"), ("c", "tea"))]
    shown = lists(np.array(asked))
    items = np.array([int(one[1:]) for one in corpus.items["item_id"]])
    named = np.where(shown.items >= 0, items[shown.items], -1)
    assert named.tolist() == [[2, 0, 3, -1], [1, -1, -1, -1], [3, -1, -1, -1], [-1] * 4]
    assert shown.ranks.tolist() == [[0, 1, 2, -1], [0, -1, -1, -1], [0, -1, -1, -1], [-1] * 4]
    assert shown.kinds.tolist() == [
        [IMPRESSION, PURCHASE, IMPRESSION, -1], [IMPRESSION, -1, -1, -1], [CLICK, -1, -1, -1], [-1] * 4
    ]  # fmt: skip


def test_every_event_of_a_search_has_its_list(corpus: Corpus) -> None:
    lists = LoggedLists.of(corpus, np.arange(len(corpus.user)), 3)
    of_first = np.flatnonzero(np.isin(corpus.time, 1_700_000_000 + np.arange(6)))
    shown = lists(of_first)
    assert len(of_first) == 6 and (shown.items == shown.items[0]).all() and (shown.items >= 0).all()


def test_lists_are_cut_and_hold_known_items_only(corpus: Corpus) -> None:
    asked = np.array([event_of(corpus, "a", "tea")])
    everything = np.arange(len(corpus.user))
    assert LoggedLists.of(corpus, everything, 2)(asked).ranks.tolist() == [[0, 1]]
    known = np.flatnonzero(corpus.items["item_id"].is_in(["i0", "i3"]).to_numpy())
    assert LoggedLists.of(corpus, everything, 3, known)(asked).ranks.tolist() == [[1, 2, -1]]


def test_a_log_without_impressions_says_so(corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"nothing was shown in this log.*--shown"):
        LoggedLists.of(corpus, np.flatnonzero(corpus.kind != IMPRESSION), 4)


def rows_of(corpus: Corpus) -> pl.DataFrame:
    one, other = event_of(corpus, "a", "tea"), event_of(corpus, "c", "tea")
    return pl.DataFrame(
        {
            "event": [other, one, one, one],
            "item_id": ["i4", "i3", "i2", "i0"],
            "rank": [0, 2, 0, 1],
            "kind": ["click", "impression", "impression", "purchase"],
        }
    )


def test_a_file_of_lists_is_read_as_the_corpus_is(corpus: Corpus, tmp_path: Path) -> None:
    rows_of(corpus).write_parquet(tmp_path / "lists.parquet")
    lists = LoggedLists.read(tmp_path / "lists.parquet", corpus, 4)
    asked = np.array([event_of(corpus, *search) for search in (("a", "tea"), ("c", "tea"), ("b", "tea"))])
    shown, own = lists(asked), LoggedLists.of(corpus, np.arange(len(corpus.user)), 4)(asked)
    for name in ("items", "ranks", "kinds"):
        np.testing.assert_array_equal(getattr(shown, name)[0], getattr(own, name)[0])
    assert shown.kinds[1:].tolist() == [[CLICK, -1, -1, -1], [-1] * 4]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item_id", "i9", "row 2: item_id.*i9.*items of the catalogue"),
        ("event", 99, "row 2: event.*99.*numbered from 0 to 9"),
        ("rank", -1, "row 2: rank.*-1.*count from 0"),
        ("rank", None, "row 2: rank.*count from 0"),
        ("kind", "glance", "row 2: kind.*glance.*impression, click, cart, purchase"),
    ],
)
def test_a_row_that_cannot_be_is_named(corpus: Corpus, tmp_path: Path, column: str, value: Any, message: str) -> None:
    rows = rows_of(corpus)
    values = rows[column].to_list()
    values[1] = value
    rows.with_columns(pl.Series(column, values)).write_parquet(tmp_path / "lists.parquet")
    with pytest.raises(UserError, match=message):
        LoggedLists.read(tmp_path / "lists.parquet", corpus, 4)


def test_a_file_that_is_none_is_told(corpus: Corpus, tmp_path: Path) -> None:
    rows_of(corpus).drop("rank").write_parquet(tmp_path / "lists.parquet")
    with pytest.raises(UserError, match=r"no such column.*rank"):
        LoggedLists.read(tmp_path / "lists.parquet", corpus, 4)
    (tmp_path / "lists.parquet").write_text("event,item_id", encoding="utf-8")
    with pytest.raises(UserError, match=f"cannot be read.*{', '.join(COLUMNS)}"):
        LoggedLists.read(tmp_path / "lists.parquet", corpus, 4)
    with pytest.raises(UserError, match="cannot be read"):
        LoggedLists.read(tmp_path / "nowhere.parquet", corpus, 4)


def test_chances_and_weights_by_hand() -> None:
    ranks = np.array([0, 1, 3, 9])
    np.testing.assert_allclose(examination(ranks, 1.0), [1, 1 / 2, 1 / 4, 1 / 10])
    np.testing.assert_allclose(examination(ranks, 0.5), [1, 2**-0.5, 1 / 2, 10**-0.5])
    np.testing.assert_allclose(inverse_propensity(examination(ranks, 1.0), 5.0), [1, 2, 4, 5])


def test_weighted_clicks_are_on_average_the_attractiveness_by_hand() -> None:
    """Two ranks, everything that can happen: looked at or not, clicked or not."""
    attraction, looked = np.array([0.2, 0.8]), examination(np.arange(2), 1.0)
    weight = inverse_propensity(looked, 10.0)
    mean = np.zeros(2)
    for looks in (0, 1):
        for clicks in (0, 1):
            chance = np.where(looks, looked, 1 - looked) * np.where(clicks, attraction, 1 - attraction)
            mean += chance * looks * clicks * weight
    np.testing.assert_allclose(mean, attraction)
    np.testing.assert_allclose(mean / weight, [0.2, 0.4])  # what clicks say without weights


def test_weighted_clicks_are_unbiased_in_a_simulation_and_clipped_ones_too_low() -> None:
    random, users, ranks = np.random.default_rng(0), 200_000, np.arange(10)
    attraction = np.linspace(0.1, 0.6, 10)  # the better, the lower on the page
    looked = examination(ranks, 1.0)
    clicks = random.random((users, 10)) < looked * attraction
    weighted = clicks * inverse_propensity(looked, 10.0)
    error = weighted.std(0) / np.sqrt(users)
    assert (np.abs(weighted.mean(0) - attraction) < 4 * error).all()
    assert np.argmax(clicks.mean(0)) == 0 and np.argmax(weighted.mean(0)) > 7
    clipped = (clicks * inverse_propensity(looked, 4.0)).mean(0)
    assert (clipped[4:] < attraction[4:] - 4 * error[4:]).all()
    np.testing.assert_allclose(clipped[:4], weighted.mean(0)[:4])


def test_only_what_needed_a_look_is_weighted(quantized_run: Path) -> None:
    """An item that was shown and left earns the same at every rank; else the last ranks would earn most."""
    run = Run.open(quantized_run)
    known = Known(run, Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid"))
    requests = Requests.of(known.corpus, np.array([3]))
    more: dict[str, NDArray[Any]] = {
        "kind": np.array([[CLICK, IMPRESSION, CLICK, PURCHASE, IMPRESSION, -1]]),
        "weight": np.array([[1.0, 2, 3, 4, 5, 1]]),
    }
    items = np.array([[0, 1, 2, 3, 4, -1]])
    rewards = Rewards(["interaction"], None, known)
    weighted = rewards(requests, items, more).total
    np.testing.assert_allclose(weighted, [[0.75, 0.25, 0.25 + 3 * 0.5, 0.25 + 4 * 0.75, 0.25, 0]])
    plain = rewards(requests, items, {"kind": more["kind"]}).total
    np.testing.assert_allclose(plain, [[0.75, 0.25, 0.75, 1, 0.25, 0]])


TOP, LOW = 5, 30
"""Items of the made-up shop: one always stands on top, the other always last."""


def write_lists(folder: Path, path: Path) -> None:
    """Lists of six: all look at TOP and every second clicks it; every sixth looks at LOW, and clicks it."""
    run = Run.open(folder)
    corpus = Corpus.load(run.folder / "corpus")
    events = np.flatnonzero(make_split(corpus, run.settings.split) == TRAIN)
    random = np.random.default_rng(0)
    others = np.array([random.choice(np.setdiff1d(np.arange(48), (TOP, LOW)), 4, replace=False) for _ in events])
    items = np.hstack([np.full((len(events), 1), TOP), others, np.full((len(events), 1), LOW)])
    clicked = np.zeros(items.shape, bool)
    clicked[:, 0], clicked[:, -1] = random.random(len(events)) < 1 / 2, random.random(len(events)) < 1 / 6
    rows = {
        "event": np.repeat(events, 6),
        "item_id": corpus.items["item_id"].gather(items.ravel()),
        "rank": np.tile(np.arange(6), len(events)),
        "kind": pl.Series(np.where(clicked.ravel(), "click", "impression"), dtype=pl.String),
    }
    pl.DataFrame(rows).write_parquet(path)


def preference(folder: Path, stage: str) -> float:
    """How many nats more likely LOW is than TOP, by validation-like searches of the log's end."""
    retriever = Retriever.load(folder, stage)
    requests = Requests.of(retriever.corpus, np.arange(len(retriever.corpus.user) - 40, len(retriever.corpus.user)))
    scorer: Any = retriever.reader.read(requests)
    said = item_log_prob(scorer, torch.tensor([[LOW, TOP]]).expand(len(requests), -1))
    return float((said[:, 0] - said[:, 1]).mean())


LISTS: dict[str, Any] = {
    "rollout": "log",
    "rewards": ["interaction"],
    "scale_rewards": "batch",
    "recent": 1.0,
    "num_generations": 6,
    "per_device_train_batch_size": 32,
    "learning_rate": 3e-3,
    "max_steps": 20,
    "warmup_steps": 1,
    "eval_strategy": "no",
    "save_strategy": "no",
}


def test_debiased_clicks_prefer_what_few_have_seen_and_all_of_them_clicked(
    new_run: Callable[[str], Path], tmp_path: Path
) -> None:
    run = new_run("run")
    write_lists(run, tmp_path / "lists.parquet")
    weighted = {"propensity": "position", "propensity_eta": 1.0}
    for stage, more in {"plain": {}, "debiased": weighted}.items():
        options = {**LISTS, "run": str(run), "stage": stage, "shown": str(tmp_path / "lists.parquet"), **more}
        grpo.train(*grpo.parse(["--config", str(write_yaml(tmp_path / f"{stage}.yaml", options))]))
    began, plain, debiased = (preference(run, stage) for stage in ("sft", "plain", "debiased"))
    assert plain < began - 0.5 < began + 0.5 < debiased


def clicked(kind: Any, **_: Any) -> Any:
    """A reward that knows shown lists alone."""
    return (kind > 0).astype(float)


def test_a_reward_may_ask_what_was_done_with_what_was_shown(new_run: Callable[[str], Path], tmp_path: Path) -> None:
    run = new_run("run")
    write_lists(run, tmp_path / "lists.parquet")
    options = {**LISTS, "run": str(run), "shown": str(tmp_path / "lists.parquet"), "rewards": [f"{__name__}:clicked"]}
    options |= {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2, "valid_requests": 20, "valid_beams": 10}
    grpo.train(*grpo.parse(["--config", str(write_yaml(tmp_path / "grpo.yaml", options))]))
    assert len(curve(run, "eval_ndcg@10")) == 2 and not curve(run, "eval_reward@10")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rollout": "distinct", "propensity": "position"}, "propensity: only lists that were shown have it"),
        ({"rollout": "distinct", "shown": "lists.parquet"}, "shown: only lists that were shown have it"),
        ({"propensity": "position", "scale_rewards": "group"}, "takes them back.*batch"),
        ({"propensity": "position", "rewards": ["bought"]}, "no reward depends on who looked.*interaction"),
        ({"propensity": "position", "propensity_clip": 0.5}, "a chance cannot be"),
        ({"propensity": "cascade"}, "propensity: unknown value.*cascade"),
        ({"watch": "reward"}, "watch: lists that were shown do not say what others would earn"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    options = {**LISTS, "run": str(tmp_path), "stage": "grpo", **more}
    with pytest.raises(UserError, match=message):
        grpo.parse(["--config", str(write_yaml(tmp_path / "grpo.yaml", options))])


def test_a_log_without_impressions_needs_a_file(trained_run: Path, tmp_path: Path) -> None:
    options = {**LISTS, "run": str(trained_run), "stage": "grpo"}
    with pytest.raises(UserError, match="nothing was shown in this log"):
        grpo.train(*grpo.parse(["--config", str(write_yaml(tmp_path / "grpo.yaml", options))]))
