"""Derived queries: every kind and disturbance does what it says, and the seed decides."""

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.corpus.queries import clean, derive
from onesearch.corpus.schema import QUERY_KINDS, QUERY_NOISE

FIELDS = pl.DataFrame(
    {
        "category": ["SOFT DRINKS", "BEEF", None, "A/B", None],
        "type": ["SOFT DRINKS 12/18PK", "LEAN", "ICE - CRUSHED", None, None],
        "size": ["12 OZ", None, "22 LB", "1 CT", None],
        "brand": ["National", "Private", "National", None, None],
    }
)
CLEAN = [
    {
        "category": "soft drinks",
        "type": "soft drinks 12 18pk",
        "type+size": "soft drinks 12 18pk oz",
        "category+brand": "soft drinks national",
    },
    {"category": "beef", "type": "lean", "category+brand": "beef private"},
    {"type": "ice crushed", "type+size": "ice crushed 22 lb"},
    {"category": "a b"},
    {},
]


def test_queries_are_what_kind_and_noise_say() -> None:
    bought = np.tile(np.arange(len(FIELDS)), 4_000)
    queries = derive(FIELDS, bought, seed=3)
    assert len(queries) == len(bought)
    seen: Counter[tuple[int, str, str]] = Counter()
    for item, (query, kind, noise) in zip(bought.tolist(), queries.iter_rows(), strict=True):
        if item == 4:
            assert (query, kind, noise) == (None, None, None)
            continue
        seen[item, kind, noise] += 1
        original, words = CLEAN[item][kind].split(), query.split()
        if noise == "clean":
            assert words == original
        elif noise == "dropped":
            assert len(words) == len(original) - 1
            assert any(words == original[:i] + original[i + 1 :] for i in range(len(original)))
        elif noise == "shuffled":
            assert words != original
            assert sorted(words) == sorted(original)
        else:
            (changed,) = [(a, b) for a, b in zip(original, words, strict=True) if a != b]
            assert len(changed[0]) == len(changed[1]) >= 4
            assert sum(a != b for a, b in zip(*changed, strict=True)) == 1
            assert changed[1].isalpha()
    for item, texts in enumerate(CLEAN[:4]):
        for kind, text in texts.items():
            several, long = " " in text, any(len(w) >= 4 and w.isalpha() for w in text.split())
            possible = {"clean", *(("dropped", "shuffled") if several else ()), *(("misspelt",) if long else ())}
            found = {noise for i, k, noise in seen if (i, k) == (item, kind)}
            assert found == possible
            share = sum(seen[item, kind, noise] for noise in QUERY_NOISE) / 4_000
            assert share == pytest.approx(1 / len(texts), abs=0.04)  # kinds are drawn uniformly
    disturbed = (queries["query_noise"].drop_nulls() != "clean").mean()
    assert disturbed == pytest.approx(0.5, abs=0.02)
    misspelt = seen[0, "category", "misspelt"] / sum(seen[0, "category", noise] for noise in QUERY_NOISE[1:])
    assert misspelt == pytest.approx(1 / 3, abs=0.06)  # and so are disturbances


def test_the_seed_decides() -> None:
    bought = np.tile(np.arange(4), 50)
    assert derive(FIELDS, bought, seed=1).equals(derive(FIELDS, bought, seed=1))
    assert not derive(FIELDS, bought, seed=1).equals(derive(FIELDS, bought, seed=2))


def test_nothing_bought() -> None:
    assert derive(FIELDS, np.zeros(0, np.int64), seed=1).shape == (0, 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DRY BN/VEG/POTATO/RICE", "dry bn veg potato rice"),
        ("SOFT DRINKS 12/18&15PK", "soft drinks 12 18 15pk"),
        ("3.9  OZ", "3.9 oz"),
        ("U.S. (BEEF)", "u s beef"),
        ("MILK 2% .5 GA.", "milk 2% .5 ga"),
        ("Crème brûlée", "crème brûlée"),
        ("ice ICE - ice", "ice"),
        (" - ", ""),
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert pl.select(clean(pl.lit(text))).item() == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=12) | st.none(), min_size=4, max_size=4), st.integers(0, 9))
def test_any_text_can_be_derived_from(fields: list[str | None], seed: int) -> None:
    frame = pl.DataFrame(
        dict(zip(("category", "type", "size", "brand"), ([one] for one in fields), strict=True)),
        schema=dict.fromkeys(("category", "type", "size", "brand"), pl.String),
    )
    for query, kind, noise in derive(frame, np.zeros(20, np.int64), seed).iter_rows():
        assert (query is None) == (kind is None) == (noise is None)
        if query is not None:
            assert query == query.strip() != ""
            assert len(set(query.split())) == len(query.split()) or noise == "misspelt"
            assert kind in QUERY_KINDS
