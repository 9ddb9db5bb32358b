"""Which searches the demo shows."""

import json
from collections.abc import Sequence
from pathlib import Path

from onesearch.corpus import Corpus
from onesearch.corpus.sources import prepare
from onesearch.showcase import Showcase, choose


def corpus_of(folder: Path, events: Sequence[tuple[str, str, str | None]]) -> Corpus:
    """A corpus of (user, item, query) purchases, one a second."""
    source = folder / "log"
    source.mkdir()
    items = sorted({item for _, item, _ in events})
    rows = [
        {"user_id": user, "item_id": item, "query": query, "event": "purchase", "timestamp": 1_700_000_000 + second}
        for second, (user, item, query) in enumerate(events)
    ]
    (source / "items.jsonl").write_text("".join(json.dumps({"item_id": item, "title": item}) + "\n" for item in items))
    (source / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare("jsonl", folder / "corpus", path=source)


def test_the_pair_with_the_least_in_common(tmp_path: Path) -> None:
    events = [("a", "oats", "cereal"), ("b", "oats", "cereal"), ("c", "bran", "cereal"), ("b", "bran", "cereal")]
    assert choose(corpus_of(tmp_path, events)) == [Showcase("cereal", ("a", "c"))]


def test_varied_queries_come_first_and_nobody_is_shown_twice(tmp_path: Path) -> None:
    same = [(user, "milk", "milk") for user in "abcdef"]
    varied = [(user, f"tea {user}", "tea") for user in "abcdef"]
    shown = choose(corpus_of(tmp_path, same + varied), 3)
    assert [one.query for one in shown] == ["tea", "milk"]
    assert len({user for one in shown for user in one.users}) == 4


def test_a_log_without_queries_gives_one_empty_query(tmp_path: Path) -> None:
    events = [(user, f"i{n}", None) for user, times in (("a", 3), ("b", 1), ("c", 2)) for n in range(times)]
    assert choose(corpus_of(tmp_path, events)) == [Showcase("", ("a", "c"))]


def test_one_user_is_not_enough(tmp_path: Path) -> None:
    assert choose(corpus_of(tmp_path, [("a", "oats", "cereal"), ("a", "bran", "cereal")])) == []
