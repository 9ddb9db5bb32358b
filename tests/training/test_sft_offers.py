"""A shop whose households buy what is displayed where they are: from the log to answers that know it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import BRANDS, DAY, KINDS, TINY, write_yaml
from typer.testing import CliRunner

from onesearch.cli import app
from onesearch.pipeline import STEPS
from onesearch.retriever import Request, Retriever
from onesearch.run import Run
from onesearch.settings import Settings

START, WEEKS, STORES = 1_700_000_000, 12, ("north", "south")


def write_shop(folder: Path) -> Path:
    """In each week a store displays one brand of each kind; four purchases in five are of it."""
    rng = np.random.default_rng(0)
    goods = [(kind, brand) for kind in KINDS for brand in BRANDS]
    shown = rng.integers(0, len(BRANDS), (WEEKS + 1, len(STORES), len(KINDS)))
    shown[WEEKS, 1] = (shown[WEEKS, 0] + 1) % len(BRANDS)  # in the end the stores display different brands
    items = [{"item_id": f"{kind} {brand}", "title": kind, "brand": brand} for kind, brand in goods]
    offers = [
        {
            "item_id": f"{KINDS[kind]} {BRANDS[shown[week, store, kind]]}",
            "kind": "display",
            "start": START + week * 7 * DAY,
            "end": START + (week + 1) * 7 * DAY,
            "place": STORES[store],
        }
        for week, store, kind in np.ndindex(shown.shape)
    ]
    events = []
    for user in range(60):
        for week in range(WEEKS):
            store = int(rng.integers(0, 2)) if week < WEEKS - 1 else user % 2
            kind = int(rng.integers(0, len(KINDS)))
            brand = shown[week, store, kind] if rng.random() < 0.8 else rng.integers(0, len(BRANDS))
            events.append(
                {
                    "user_id": f"u{user}",
                    "item_id": f"{KINDS[kind]} {BRANDS[brand]}",
                    "timestamp": int(START + (week + 0.9 * rng.random()) * 7 * DAY),
                    "event": "purchase",
                    "query": KINDS[kind],
                    "session_id": f"u{user}-{week}",
                    "place": STORES[store],
                    "device": "phone",
                }
            )
    # somebody comes when the last week's displays stand already: answers are as of the end of the log
    events.append({**events[-1], "timestamp": START + WEEKS * 7 * DAY + 10, "session_id": "last"})
    folder.mkdir(parents=True)
    for table, rows in (("items", items), ("events", events), ("offers", offers)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trained(folder: Path, **more: Any) -> Path:
    options = TINY | {"num_train_epochs": 8, "per_device_train_batch_size": 16} | more
    settings = Settings(
        source="jsonl",
        path=str(write_shop(folder / "log")),
        level_sizes=(4, 4),
        last_level=8,
        sft=str(write_yaml(folder / "sft.yaml", options)),
        reinforce=False,
        processes=1,
    )
    run = Run.create(folder / "run", settings)
    for name in ("prepare", "embed", "quantize", "train"):
        STEPS[name].do(run, lambda done, total: None)
    return run.folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("wordllama")
    return trained(tmp_path_factory.mktemp("offers"), views=["place", "device"])


def displayed_first(retriever: Retriever, requests: list[Request], store: str) -> float:
    """The share of the queries whose first hit is what the store displays in the end."""
    offers = retriever.corpus.offers.collect()
    now = offers.filter(offers["end"] == offers["end"].max(), offers["place"] == store)["item_id"].to_list()
    first = [answer.hits[0].item_id for answer in retriever.search(requests, 4)]
    return float(np.mean([item in now for item in first]))


def test_what_is_displayed_where_a_request_is_made_comes_first(run: Path) -> None:
    retriever = Retriever.load(run)
    for here, elsewhere in (STORES, STORES[::-1]):
        asked = [Request(kind, None, place=here) for kind in KINDS]
        assert displayed_first(retriever, asked, here) > 0.8 > displayed_first(retriever, asked, elsewhere)


def test_a_user_is_where_the_last_purchase_was_unless_it_is_said(run: Path) -> None:
    retriever = Retriever.load(run)
    corpus = retriever.corpus
    places = [corpus.places[int(corpus.place[end - 1])] for end in corpus.offsets[1:]]
    last = dict(zip(corpus.users["user_id"], places, strict=True))
    assert last["u0"] != last["u1"]
    for user in ("u0", "u1"):
        silent, same, other = retriever.search(
            [Request("dish soap", user, place=place) for place in (None, last[user], "moon")], 5
        )
        assert silent.hits == same.hits != other.hits
        assert silent.note is None and other.note == "place 'moon' is not in the log: answered as if it were not known"


def test_the_command_line_and_files_say_where_and_with_what(run: Path, tmp_path: Path) -> None:
    def ask(*options: str) -> dict[str, Any]:
        shown = CliRunner().invoke(app, ["generate", "--run", str(run), "--query", "dish soap", "--json", *options])
        assert shown.exit_code == 0, shown.output
        found: dict[str, Any] = json.loads(shown.stdout)
        return found

    north, south = ask("--place", "north"), ask("--place", "south")
    assert [hit["score"] for hit in north["hits"]] != [hit["score"] for hit in south["hits"]]
    assert ask("--place", "north", "--device", "phone")["hits"] != north["hits"]
    soaps = [hit for hit in north["hits"] if hit["title"] == "dish soap"]
    assert [hit["on_offer"] for hit in soaps] == [["display"], [], [], []]
    assert "device 'fax' is not in the log" in ask("--device", "fax")["note"]
    lines = [{"query": "dish soap", "place": place, "device": None} for place in STORES]
    (tmp_path / "asked").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source, target = str(tmp_path / "asked"), str(tmp_path / "answers")
    told = CliRunner().invoke(app, ["generate", "--run", str(run), "--input", source, "--output", target])
    assert told.exit_code == 0, told.output
    answers = [json.loads(line) for line in (tmp_path / "answers").read_text().splitlines()]
    assert [answer["hits"][0]["item_id"] for answer in answers] == [
        answer["hits"][0]["item_id"] for answer in (north, south)
    ]


def test_offers_can_be_left_out(tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    retriever = Retriever.load(trained(tmp_path, offers=False, num_train_epochs=1))
    north, south = retriever.search([Request("dish soap", place=place) for place in STORES], 5)
    assert north.hits == south.hits
