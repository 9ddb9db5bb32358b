"""All views together: nothing of the future in them, the same alone and in a batch, the same once loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from catalogues import random_codes
from view_logs import ITEMS, MakeLog

from onesearch.context.history import HistorySelector, HistorySlots
from onesearch.context.relevance import RelevanceSpace
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views import Source, ViewReader, ViewSettings
from onesearch.context.views.settings import HISTORIES, VIEWS
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.arrays import same_item_links
from onesearch.embed.static import StaticEncoder
from onesearch.errors import UserError

TOKENIZER = QueryTokenizer.train([f"query {n}" for n in range(6)])
CODES = random_codes(np.random.default_rng(0), ITEMS, (3, 4, 2), unique=True)
VECTORS = np.random.default_rng(1).standard_normal((ITEMS, 5)).astype(np.float32)
WAYS = [ViewSettings(views=VIEWS), ViewSettings(views=VIEWS, uid="paper", long="lrea", past_queries=3, long_tokens=2)]


def source(corpus: Corpus, model: Path | None = None) -> Source:
    return Source(corpus, CODES.astype(np.int64), VECTORS, TOKENIZER, 8, model=model)


def selector(corpus: Corpus, encoder: StaticEncoder, history: str = "relevant") -> HistorySelector:
    texts = [f"thing {n}" for n in range(ITEMS)]
    space = RelevanceSpace.fit(texts, encoder)
    return HistorySelector(corpus, space.encode(texts), 4, VECTORS, history)


def slots_of(corpus: Corpus, encoder: StaticEncoder, requests: Requests, history: str = "relevant") -> HistorySlots:
    chosen = selector(corpus, encoder, history)
    space = RelevanceSpace.fit([f"thing {n}" for n in range(ITEMS)], encoder)
    return chosen.select(requests, space.encode(requests.query))


def arrays_of(reader: ViewReader, encoder: StaticEncoder, corpus: Corpus, requests: Requests) -> dict[str, Any]:
    slots = slots_of(corpus, encoder, requests)
    found, arrays = reader.read(requests, slots, np.full(len(requests), 2))
    return {**arrays, "slots": found.event}


def rewritten_after(corpus: Corpus, event: int, rng: np.random.Generator) -> Corpus:
    """The log with other items, kinds and queries in the session of the event and later, and at everybody else's
    events of the same moment or later."""
    own = np.arange(len(corpus.item)) >= corpus.history_end[event]
    own &= corpus.user == corpus.user[event]
    later = own | ((corpus.user != corpus.user[event]) & (corpus.time >= corpus.time[event]))
    item, kind, query = corpus.item.copy(), corpus.kind.copy(), corpus.query.copy()
    item[later] = (item[later] + 1 + rng.integers(0, ITEMS - 1, later.sum())) % ITEMS
    kind[later] = rng.integers(0, 4, later.sum())
    query[later] = rng.integers(-1, len(corpus.queries), later.sum())
    next_same, nth_same = same_item_links(corpus.user, item)
    return replace(corpus, item=item, kind=kind, query=query, next_same=next_same, nth_same=nth_same)


@pytest.mark.parametrize("settings", WAYS, ids=["ours", "papers"])
@pytest.mark.parametrize("clock", [True, False])
def test_what_happens_from_the_session_on_changes_nothing(
    make_log: MakeLog, word_encoder: StaticEncoder, settings: ViewSettings, clock: bool
) -> None:
    if not clock:
        settings = replace(settings, views=tuple(view for view in VIEWS if view != "time"))
    corpus = make_log(size=900, clock=clock)
    reader = ViewReader.make(settings, source(corpus), None)
    rng = np.random.default_rng(2)
    for event in rng.choice(len(corpus.item), 12, replace=False).tolist():
        request = Requests.of(corpus, np.array([event]))
        changed = rewritten_after(corpus, event, rng)
        expected = arrays_of(reader, word_encoder, corpus, request)
        found = arrays_of(ViewReader.make(settings, source(changed), None), word_encoder, changed, request)
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=f"{name} of event {event}")


@pytest.mark.parametrize("settings", WAYS, ids=["ours", "papers"])
def test_what_happened_before_the_session_does_change_them(
    make_log: MakeLog, word_encoder: StaticEncoder, settings: ViewSettings
) -> None:
    """So that the test above can fail."""
    corpus = make_log(size=900)
    event = int(corpus.offsets[1]) - 1
    request = Requests.of(corpus, np.array([event]))
    moved = replace(corpus, item=(corpus.item + 1) % ITEMS, query=(corpus.query + 1) % len(corpus.queries))
    one, other = (
        arrays_of(ViewReader.make(settings, source(log), None), word_encoder, log, request) for log in (corpus, moved)
    )
    for name in ("uid_codes", "long_means", "past_query_ids"):
        assert one[name].shape != other[name].shape or (one[name] != other[name]).any(), name


@pytest.mark.parametrize("settings", WAYS, ids=["ours", "papers"])
def test_a_request_alone_is_its_part_of_the_batch(
    make_log: MakeLog, word_encoder: StaticEncoder, settings: ViewSettings
) -> None:
    corpus = make_log()
    reader = ViewReader.make(settings, source(corpus), None)
    requests = Requests.of(corpus, np.arange(0, len(corpus.item), 17))
    slots, tokens = slots_of(corpus, word_encoder, requests), np.full(len(requests), 2)
    together = reader.read(requests, slots, tokens)[1]
    for row in range(len(requests)):
        one = slice(row, row + 1)
        part = HistorySlots(slots.item[one], slots.event[one], slots.features[one], slots.taste[one])
        alone = reader.read(requests.part(one), part, tokens[one])[1]
        for name, array in alone.items():
            whole = together[name][row : row + 1]
            cut = whole[tuple(slice(0, size) for size in array.shape)]
            np.testing.assert_allclose(array, cut, atol=1e-5, err_msg=name)
            assert np.count_nonzero(whole) == np.count_nonzero(cut), f"{name}: only padding follows"


def test_saved_and_loaded_they_read_the_same(make_log: MakeLog, word_encoder: StaticEncoder, tmp_path: Path) -> None:
    corpus = make_log()
    reader = ViewReader.make(WAYS[0], source(corpus), None)
    folder = tmp_path / "model"
    reader.save(folder)
    again = ViewReader.make(WAYS[0], source(corpus, folder), None)
    assert again.sizes() == reader.sizes()
    requests = Requests.of(corpus, np.arange(0, len(corpus.item), 9))
    expected, found = (arrays_of(one, word_encoder, corpus, requests) for one in (reader, again))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_recent_slots_are_the_last_distinct_items_and_none_are_none(
    make_log: MakeLog, word_encoder: StaticEncoder
) -> None:
    corpus = make_log()
    requests = Requests.of(corpus, np.arange(0, len(corpus.item), 11))
    recent = slots_of(corpus, word_encoder, requests, "recent")
    for row in range(len(requests)):
        past = range(int(requests.history_end[row]) - 1, int(requests.history_start[row]) - 1, -1)
        items = list(dict.fromkeys(int(corpus.item[event]) for event in past if corpus.kind[event] > 0))[:4]
        assert recent.item[row].tolist() == items + [-1] * (4 - len(items))
    none = slots_of(corpus, word_encoder, requests, "none")
    assert (none.item == -1).all() and not none.features.any() and not none.taste.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"views": ("uid", "longg")}, "views.*unknown name.*'longg'.*known: uid, queries, long, profile, time.*'long'"),
        ({"views": ("uid", "uid")}, "named twice"),
        ({"history": "newest"}, f"history.*known: {', '.join(HISTORIES)}"),
        ({"uid": "far"}, "uid.*known: nearest, paper"),
        ({"long": "transformer"}, "long.*known: qformer, lrea"),
        ({"past_queries": 0}, "past_queries.*too few"),
    ],
)
def test_a_mistake_in_the_settings_names_what_is_known(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViewSettings(**wrong)
