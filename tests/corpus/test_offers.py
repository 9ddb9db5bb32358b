"""What is on offer where and when, against looking through all offers; and what is wrong with offers."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_up import write_shop

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.offers import Offers, offer_kinds
from onesearch.corpus.sources import prepare
from onesearch.corpus.tables import OnError
from onesearch.errors import UserError

START = 1_700_000_000


def with_offers(folder: Path, offers: list[dict[str, object]], on_error: OnError = "stop") -> Corpus:
    """The made-up shop, whose users are in turn in the north, in the south, and nobody knows where."""
    log = write_shop(folder / "log", users=6, baskets=6)
    events = [json.loads(line) for line in (log / "events.jsonl").read_text().splitlines()]
    for event in events:
        number = int(event["user_id"][1:])
        event |= {"place": ("north", "south", " ")[number % 3], "device": "phone" if number % 2 else None}
    for table, rows in (("events", events), ("offers", offers)):
        (log / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare("jsonl", folder / "corpus", path=log, on_error=on_error)


def random_offers(rng: np.random.Generator, count: int) -> list[dict[str, object]]:
    day = rng.integers(0, 100, count)
    return [
        {
            "item_id": f"i{rng.integers(0, 48)}",
            "kind": str(rng.choice(["display", "mailer"])),
            "start": int(START + at * 86_400),
            "end": int(START + (at + rng.integers(1, 30)) * 86_400),
            "place": (None, "north", "west")[rng.integers(0, 3)],
        }
        for at in day
    ]


def test_items_on_offer_are_those_of_the_place_and_the_moment(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = random_offers(rng, 80)
    corpus = with_offers(tmp_path, rows)
    assert sorted(corpus.places) == ["north", "south"] and corpus.devices == ["phone"]
    assert len(corpus.offers.collect()) == 80
    kinds = offer_kinds(corpus)
    assert kinds == ("display", "mailer")
    requests = Requests.of(corpus, np.arange(len(corpus.user)))
    assert {-1, 0, 1} == set(requests.place.tolist()) and {-1, 0} == set(requests.device.tolist())
    offers = Offers.of(corpus, kinds)
    items = rng.integers(-1, len(corpus.items), (len(requests), 20))
    found = offers.of_items(offers.rows(requests), items)
    ids = corpus.items["item_id"].to_list()
    expected = np.zeros_like(found)
    for request, item in np.argwhere(items >= 0):
        where = corpus.places[requests.place[request]] if requests.place[request] >= 0 else None
        for row in rows:
            holds = row["start"] <= requests.time[request] < row["end"] and row["place"] in (None, where)
            if holds and row["item_id"] == ids[items[request, item]]:
                expected[request, item, kinds.index(str(row["kind"]))] = 1
    np.testing.assert_array_equal(found, expected)
    assert 0 < found.mean() < 1


def test_an_offer_holds_from_its_start_until_before_its_end(tmp_path: Path) -> None:
    corpus = with_offers(tmp_path, [{"item_id": "i0", "kind": "display", "start": START, "end": START + 10}])
    offers, item = Offers.of(corpus, ("display",)), np.zeros((4, 1), np.int64)
    some = Requests.of(corpus, np.arange(4))
    moments = np.array([START - 1, START, START + 9, START + 10])
    moved = Requests(**{**some.__dict__, "time": moments})
    assert offers.of_items(offers.rows(moved), item).ravel().tolist() == [0, 1, 1, 0]


def test_nothing_is_on_offer_without_offers(shop: Corpus) -> None:
    offers = Offers.of(shop, offer_kinds(shop))
    assert offers.kinds == ()
    assert offers.of_items(offers.rows(Requests.of(shop, np.arange(3))), np.zeros((3, 2), np.int64)).shape == (3, 2, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"item_id": "nothing"}, r"offers.jsonl row 2 column item_id.*unknown item.*'nothing'"),
        ({"kind": " "}, r"row 2 column kind.*empty kind"),
        ({"end": START}, r"row 2 column end.*ends before it begins"),
        ({"start": START * 1000}, r"row 2 column start.*not in seconds since 1970"),
    ],
)
def test_a_wrong_offer_is_told_or_left_out(tmp_path: Path, row: dict[str, object], message: str) -> None:
    good: dict[str, object] = {"item_id": "i0", "kind": "display", "start": START, "end": START + 10, "place": "north"}
    with pytest.raises(UserError, match=message):
        with_offers(tmp_path / "stop", [good, good | row])
    assert len(with_offers(tmp_path / "skip", [good, good | row], on_error="skip").offers.collect()) == 1


def test_offers_need_a_clock(tmp_path: Path) -> None:
    log = write_shop(tmp_path / "log", users=2, baskets=2)
    events = [json.loads(line) for line in (log / "events.jsonl").read_text().splitlines()]
    for place, event in enumerate(events):
        event["position"] = place
        del event["timestamp"]
    (log / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (log / "offers.jsonl").write_text(json.dumps({"item_id": "i0", "kind": "a", "start": 0, "end": 1}) + "\n")
    with pytest.raises(UserError, match="offers need a log with clock times"):
        prepare("jsonl", tmp_path / "corpus", path=log)


def test_too_many_kinds_are_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"item_id": "i0", "kind": f"kind {number}", "start": START, "end": START + 1} for number in range(9)
    ]
    corpus = with_offers(tmp_path, rows)
    with pytest.raises(UserError, match="more than 8 kinds of offers"):
        Offers.of(corpus, offer_kinds(corpus))
