"""Keywords found in texts, against a slow search by hand, and what they do to vectors."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.embed.keywords import Keywords, enhance, item_keyword_texts


def found(keywords: Keywords, texts: list[str]) -> list[set[str]]:
    pairs = keywords.find(texts)
    sets: list[set[str]] = [set() for _ in texts]
    for text, keyword in zip(pairs.text, pairs.keyword, strict=True):
        sets[text].add(keywords.texts[keyword])
    return sets


def test_the_longest_stays_and_words_are_whole() -> None:
    keywords = Keywords(["cereal", "cold cereal", "tea", "steak", "20 OZ"])
    texts = ["Cold-cereal, 20 oz", "cereal and tea", "STEAKS steak", "", "oz 20"]
    assert found(keywords, texts) == [{"cold cereal", "20 OZ"}, {"cereal", "tea"}, {"steak"}, set(), set()]


def test_words_that_stand_in_the_longer_one_only_by_their_letters_stay() -> None:
    assert found(Keywords(["tea", "steak"]), ["tea steak"]) == [{"tea", "steak"}]


def test_scripts_without_spaces_have_no_word_boundaries() -> None:
    keywords = Keywords(["绿茶", "茶叶", "龙井茶叶", "Nike"])
    assert found(keywords, ["龙井茶叶500g", "绿茶nike鞋"]) == [{"龙井茶叶"}, {"绿茶", "Nike"}]


def test_what_is_no_keyword() -> None:
    assert Keywords(["69", "a", "-", "x" * 65, "Cola", "COLA!"]).texts == ["Cola"]
    assert found(Keywords([]), ["cola"]) == [set()]
    assert len(Keywords(["cola"]).find([]).text) == 0


words = st.text("ab é|", min_size=0, max_size=8)


@settings(deadline=None, max_examples=60)
@given(st.lists(words, max_size=8), st.lists(words, max_size=6))
def test_agrees_with_regular_expressions(values: list[str], texts: list[str]) -> None:
    keywords = Keywords(values)
    plain = [re.sub(r" ?\| ?", "|", re.sub(r" +", " ", text)).strip(" ") for text in texts]
    keys = [re.sub(r" +", " ", text).strip(" ") for text in keywords.texts]

    def stands(key: str, text: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text) is not None

    for text, hits in zip(plain, found(keywords, texts), strict=True):
        there = {key for key in keys if stands(key, text)}
        expected = {key for key in there if not any(stands(key, other) for other in there - {key})}
        assert {re.sub(r" +", " ", hit).strip(" ") for hit in hits} == expected


def test_a_vector_goes_halfway_to_the_mean_of_its_keywords() -> None:
    table = {"red": [0.0, 1.0], "shoe": [1.0, 0.0]}
    asked: list[str] = []

    def encode(texts: Any) -> Any:
        asked.extend(texts)
        return np.array([table[text] for text in texts], np.float32)

    vectors = np.array([[1, 0], [1, 0], [0.6, 0.8], [0.5, 0]], np.float32)
    enhanced = enhance(vectors, ["red shoe", "red", "shoe shoe", "hat"], Keywords(["red", "shoe", "blue"]), encode)
    # 1/2 ((1, 0) + (1/2, 1/2)), 1/2 ((1, 0) + (0, 1)), 1/2 ((0.6, 0.8) + (1, 0)), at unit length; the last stays
    by_hand = [np.array(v) / np.linalg.norm(v) for v in ([0.75, 0.25], [0.5, 0.5], [0.8, 0.4])]
    np.testing.assert_allclose(enhanced[:3], by_hand, rtol=1e-6)
    np.testing.assert_array_equal(enhanced[3], vectors[3])
    assert sorted(asked) == ["red", "shoe"], "each once, and none that was not found"


def test_a_text_gets_the_same_vector_alone_as_among_others(shop: Any, word_encoder: Any) -> None:
    keywords, texts = Keywords.of(shop), item_keyword_texts(shop)
    vectors = word_encoder.encode(texts)
    together = enhance(vectors, texts, keywords, word_encoder.encode)
    assert not np.array_equal(together, vectors)
    for row in (0, 7, len(texts) - 1):
        alone = enhance(vectors[row : row + 1], texts[row : row + 1], keywords, word_encoder.encode)
        np.testing.assert_array_equal(alone[0], together[row])


def test_an_items_own_values_count_as_found() -> None:
    class One:
        items = pl.DataFrame(
            {
                "item_id": ["1", "2"],
                "title": ["Runner", "Plain"],
                "brand": ["Acme", None],
                "categories": [["Shoes", "Sport"], None],
                "description": [None, None],
                "attributes": [[{"name": "colour", "value": "Deep Red"}, {"name": "maker", "value": "69"}], None],
            },
            schema_overrides={"description": pl.String},
        )

    corpus: Any = One()
    keywords = Keywords.of(corpus)
    assert sorted(keywords.texts) == ["Acme", "Deep Red", "Shoes", "Sport"]
    assert found(keywords, item_keyword_texts(corpus)) == [{"Acme", "Shoes", "Sport", "Deep Red"}, set()]


@pytest.mark.parametrize("texts", [["Cola", "Deep Red"], []])
def test_saved_keywords_are_the_same(tmp_path: Path, texts: list[str]) -> None:
    Keywords(texts).save(tmp_path / "keywords.parquet")
    assert Keywords.load(tmp_path / "keywords.parquet").texts == texts
