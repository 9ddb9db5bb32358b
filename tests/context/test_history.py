"""The history slots against a slow reading of the log, event by event."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.context.history import FEATURES, FIT_SHARPNESS, HALF_LIVES, SHORTLIST, HistorySelector
from onesearch.context.relevance import RelevanceSpace, RelevantTexts
from onesearch.corpus import Corpus, Requests, sources
from onesearch.corpus.popularity import DAY
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed.static import StaticEncoder

TITLES = ("acme cereal", "cold cereal small", "ground coffee", "acme coffee", "dish soap", "soap", "orange juice acme")
QUERIES = ("cereal", "cold cerael", "coffee", "acme", "soap dish", "juice small", "")
ITEMS, USERS = len(TITLES), 3


def random_corpus(rng: np.random.Generator, events: int, clock: bool, impressions: bool) -> Corpus:
    """A log in which users often choose the same item again, several at once, in sessions that may interleave."""
    rows = []
    for _ in range(events):
        kind = ("impression", "click", "purchase")[rng.integers(0 if impressions else 1, 3)]
        row = {"user_id": f"u{rng.integers(USERS)}", "item_id": f"i{rng.integers(ITEMS)}", "event": kind}
        row["timestamp" if clock else "position"] = int(rng.integers(0, 12) * (9 * DAY if clock else 1))
        if rng.random() < 0.5:
            row["session_id"] = f"{row['user_id']}-{rng.integers(4)}"
        rows.append(row)
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log").mkdir()
        items = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(TITLES)]
        for table, lines in (("items", items), ("events", rows)):
            (folder / "log" / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        sources.prepare("jsonl", folder / "corpus", path=folder / "log")
        return Corpus.load(folder / "corpus")


@pytest.fixture(scope="module")
def space(word_encoder: StaticEncoder) -> RelevanceSpace:
    return RelevanceSpace.fit(TITLES, word_encoder)


Slot = tuple[int, int, dict[str, float]]


def slow(corpus: Corpus, items: RelevantTexts, queries: RelevantTexts, event: int, slots: int) -> list[Slot]:
    """(item, its last event, features) of the most relevant items that the user chose before the session of `event`.

    `event` is also the row of its query.
    """
    session, now = corpus.session[event], corpus.time[event]
    mine = [e for e in range(len(corpus.item)) if corpus.user[e] == corpus.user[event]]
    if session > 0:
        begun = min(e for e in mine if corpus.session[e] == session)
    else:
        begun = min(e for e in mine if corpus.time[e] == now and corpus.session[e] == 0)
    found = []
    for item in range(ITEMS):
        chosen = [e for e in mine if e < begun and corpus.item[e] == item and corpus.kind[e] > 0]
        if not chosen:
            continue
        days = [max(now - corpus.time[e], 0) / (DAY if corpus.has_clock else 1) for e in chosen]
        lately, lastingly = (sum(0.5 ** (day / half_life) for day in days) for half_life in HALF_LIVES)
        relevance = float(queries.vectors[event] @ items.vectors[item])
        coverage = float(queries.covered(np.array([event]), items, np.array([item]))[0])
        features = {
            "relevance": relevance,
            "coverage": coverage,
            "log_count": np.log(len(chosen)),
            "lately": np.log1p(lately),
            "lastingly": np.log1p(lastingly),
            "log_days": np.log1p(days[-1]) / 4,
            "rhythm": np.log1p(days[-1] * lastingly) / 4,
        }
        score = relevance + 0.08 * np.log(len(chosen)) - 0.02 * np.log1p(days[-1])
        found.append((score, score + 2 * coverage, (item, chosen[-1], features)))
    near = sorted(found, key=lambda one: (-one[0], one[2][1]))[: SHORTLIST * slots]
    kept = [slot for _, _, slot in sorted(near, key=lambda one: -one[1])[:slots]]
    best = max((features["coverage"] for *_, features in kept), default=0)
    closeness = [(features["coverage"] / max(best, 1e-6)) ** FIT_SHARPNESS for *_, features in kept]
    weighted = {
        name: [close * np.expm1(features[name]) for close, (*_, features) in zip(closeness, kept, strict=True)]
        for name in ("lately", "lastingly")
    }
    for place, (_, event_chosen, features) in enumerate(kept):
        later = sum(
            close
            for close, (_, other, _) in zip(closeness, kept, strict=True)
            if corpus.time[other] > corpus.time[event_chosen]
        )
        features["fit"] = features["coverage"] / max(best, 1e-6)
        for name, weights in weighted.items():
            features[f"share_{name}"] = weights[place] / max(sum(weights), 1e-6)
        features["freshest"] = closeness[place] / (1 + later)
        features["log_past"] = np.log1p(sum(e < begun for e in mine)) / 8
    return kept


@pytest.mark.parametrize("clock", [True, False])
@pytest.mark.parametrize("impressions", [False, True])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), events=st.integers(1, 70), slots=st.integers(1, 8))
def test_the_slots_are_those_of_a_slow_reading(
    space: RelevanceSpace, clock: bool, impressions: bool, seed: int, events: int, slots: int
) -> None:
    rng = np.random.default_rng(seed)
    corpus = random_corpus(rng, events, clock, impressions)
    items = space.encode(TITLES)
    queries = space.encode([QUERIES[n] for n in rng.integers(0, len(QUERIES), events)])
    asked = rng.permutation(events).astype(np.int64)
    taste = rng.standard_normal((ITEMS, 3), np.float32)
    found = HistorySelector(corpus, items, slots, taste).select(Requests.of(corpus, asked), queries.take(asked))
    assert found.item.shape == found.event.shape == (events, slots)
    for row, event in enumerate(asked.tolist()):
        expected = slow(corpus, items, queries, event, slots)
        filled = len(expected)
        assert found.item[row].tolist() == [slot[0] for slot in expected] + [-1] * (slots - filled)
        assert found.event[row].tolist() == [slot[1] for slot in expected] + [-1] * (slots - filled)
        for place, slot in enumerate(expected):
            np.testing.assert_allclose(found.features[row, place], [slot[2][name] for name in FEATURES], atol=1e-4)
        assert not found.features[row, filled:].any()
        begun = corpus.history_end[event]
        past = np.arange(corpus.offsets[corpus.user[event]], begun)
        bought = sorted({int(corpus.item[e]) for e in past if corpus.kind[e] > EVENT_KINDS.index("impression")})
        close = np.array([slot[2]["fit"] ** FIT_SHARPNESS for slot in expected], np.float32)
        for total, unit in (
            (taste[bought].sum(0), found.taste[row, 0]),
            (close @ taste[[slot[0] for slot in expected]] if filled else np.zeros(3), found.taste[row, 1]),
        ):
            np.testing.assert_allclose(unit, total / max(np.linalg.norm(total), 1e-9), atol=1e-4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), events=st.integers(1, 70), clock=st.booleans())
def test_nothing_of_the_session_or_later_or_of_another_user_is_selected(
    space: RelevanceSpace, seed: int, events: int, clock: bool
) -> None:
    rng = np.random.default_rng(seed)
    corpus = random_corpus(rng, events, clock, impressions=True)
    queries = space.encode([QUERIES[n] for n in rng.integers(0, len(QUERIES), events)])
    selector = HistorySelector(corpus, space.encode(TITLES), ITEMS, np.zeros((ITEMS, 0), np.float32))
    found = selector.select(Requests.of(corpus, np.arange(events)), queries)
    for event in range(events):
        for chosen in found.event[event][found.event[event] >= 0]:
            assert corpus.user[chosen] == corpus.user[event] and chosen < event
            assert corpus.time[chosen] <= corpus.time[event]
            assert corpus.session[chosen] == 0 or corpus.session[chosen] != corpus.session[event]


@pytest.mark.parametrize(("clock", "impressions"), [(True, True), (True, False), (False, True)])
def test_running_counts_are_the_same_however_the_log_is_cut(
    space: RelevanceSpace, monkeypatch: pytest.MonkeyPatch, clock: bool, impressions: bool
) -> None:
    corpus = random_corpus(np.random.default_rng(5), 120, clock, impressions)
    arguments = (corpus, space.encode(TITLES), ITEMS, np.zeros((ITEMS, 0), np.float32))
    queries = space.encode([QUERIES[n % len(QUERIES)] for n in range(120)])
    requests = Requests.of(corpus, np.arange(120))
    whole = HistorySelector(*arguments).select(requests, queries)
    assert (whole.features[..., FEATURES.index("log_count")] > 0).sum() > 50
    spans = Corpus.spans
    monkeypatch.setattr(Corpus, "spans", lambda self: spans(self, most=1))
    assert len(list(corpus.spans())) == USERS
    pieces = HistorySelector(*arguments).select(requests, queries)
    np.testing.assert_array_equal(pieces.features, whole.features)
    np.testing.assert_array_equal(pieces.event, whole.event)
