"""The relevance space: untidy queries stay near what they mean, saving changes nothing."""

from pathlib import Path

import numpy as np
import pytest

from onesearch.context.relevance import HALF, RelevanceSpace
from onesearch.embed.static import StaticEncoder

TEXTS = [
    f"{brand} {kind} {size}"
    for kind in ("cold cereal", "ground coffee", "dish soap", "dog food", "potato chips", "orange juice")
    for brand in ("acme", "bluebird", "cedar")
    for size in ("small", "large")
]


@pytest.fixture(scope="module")
def space(word_encoder: StaticEncoder) -> RelevanceSpace:
    return RelevanceSpace.fit(TEXTS, word_encoder)


def nearest(space: RelevanceSpace, query: str) -> str:
    every = np.arange(len(TEXTS))
    cosine = space.encode([query]).cosine(np.array([0, len(every)]), space.encode(TEXTS), every)
    return TEXTS[int(cosine.argmax())]


@pytest.mark.parametrize(
    ("query", "meant"),
    [
        ("cerael", "cereal"),
        ("coffe", "coffee"),
        ("potatoe small", "potato"),
        ("dihs soap", "soap"),
        ("POTATO CHPIS", "potato"),
        ("juice orangge", "orange"),
    ],
)
def test_a_misspelt_word_is_nearest_its_own(space: RelevanceSpace, query: str, meant: str) -> None:
    assert meant in nearest(space, query)


def test_vectors_have_unit_length_and_halves_of_equal_weight(space: RelevanceSpace) -> None:
    vectors = space.encode(TEXTS).vectors
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    lexical = len(space.lexical)
    np.testing.assert_allclose((vectors[:, :lexical] ** 2).sum(1), 0.5, atol=1e-5)
    assert vectors.shape[1] <= 2 * HALF


def test_an_unknown_text_has_no_direction_and_no_effect_on_others(space: RelevanceSpace) -> None:
    alone = space.encode(["cold cereal"]).vectors
    together = space.encode(["", "qqq zzz 狗", "cold cereal", " "]).vectors
    assert not together[[0, 3]].any()
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together[2], alone[0], atol=1e-6)


def test_word_order_and_case_do_not_matter_to_letters(space: RelevanceSpace) -> None:
    one, other = space.encode(["Cereal COLD acme", "acme cold cereal"]).vectors
    np.testing.assert_allclose(one[: len(space.lexical)], other[: len(space.lexical)], atol=1e-6)


def test_coverage_is_the_share_of_the_query_that_the_item_has(space: RelevanceSpace) -> None:
    items = space.encode(["cold cereal acme", "dish potato"])
    queries = ["cereal", "CEREAL acme cold", "cerael", "cereal potato", "", "coffee", "dosh"]

    def covered(item: int) -> dict[str, float]:
        rows = np.arange(len(queries))
        return dict(
            zip(queries, space.encode(queries).covered(rows, items, np.full_like(rows, item)).tolist(), strict=True)
        )

    cereal, potato = covered(0), covered(1)
    assert cereal["cereal"] == pytest.approx(1) and cereal["CEREAL acme cold"] == pytest.approx(1)
    assert cereal["cerael"] == pytest.approx(1) and potato["cerael"] == 0, "what no item has counts for nothing"
    assert 0.1 < potato["dosh"] < 0.9, "it shares trigrams with dish and with dog"
    assert cereal["cereal potato"] + potato["cereal potato"] == pytest.approx(1, abs=0.05)
    assert cereal[""] == potato[""] == 0
    assert cereal["coffee"] < 0.2 and potato["cereal"] == 0


def test_some_of_the_texts_are_the_same_texts(space: RelevanceSpace) -> None:
    rows = np.array([3, 0, 3])
    taken, alone = space.encode(TEXTS).take(rows), space.encode([TEXTS[row] for row in rows])
    np.testing.assert_allclose(taken.vectors, alone.vectors, atol=1e-6)
    np.testing.assert_allclose(taken.weights.toarray(), alone.weights.toarray(), atol=1e-6)
    np.testing.assert_array_equal(taken.present, alone.present)


def test_saved_and_fitted_again_it_is_the_same(
    space: RelevanceSpace, word_encoder: StaticEncoder, tmp_path: Path
) -> None:
    space.save(tmp_path)
    queries = [*TEXTS, "cerael", ""]
    expected = space.encode(queries)
    for other in (RelevanceSpace.load(tmp_path, word_encoder), RelevanceSpace.fit(TEXTS, word_encoder)):
        again = other.encode(queries)
        np.testing.assert_array_equal(again.vectors, expected.vectors)
        np.testing.assert_array_equal(again.weights.toarray(), expected.weights.toarray())
        np.testing.assert_array_equal(again.present, expected.present)
