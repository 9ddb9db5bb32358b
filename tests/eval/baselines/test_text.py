import numpy as np

from eval.baselines.text import TextIndex, Texts, relative

TEXTS = Texts.of(["cold cereal 12 oz", "ground coffee 12 oz", "cold cereal 12 oz", "dog food", "cold brew coffee"])


def test_equal_texts_are_one():
    assert len(TEXTS.distinct) == 4
    assert [TEXTS.distinct[t] for t in TEXTS.of_item] == [
        "cold cereal 12 oz",
        "ground coffee 12 oz",
        "cold cereal 12 oz",
        "dog food",
        "cold brew coffee",
    ]


def test_words_are_stemmed_and_the_best_match_comes_first():
    scores = TextIndex(TEXTS).word_scores(["cereals cold", "coffee", "", "nothing of it"])
    assert TEXTS.distinct[int(scores[0].argmax())] == "cold cereal 12 oz"
    assert {TEXTS.distinct[t] for t in np.flatnonzero(scores[1])} == {"ground coffee 12 oz", "cold brew coffee"}
    assert not scores[2:].any()
    assert relative(scores).max(axis=1).tolist() == [1, 1, 0, 0]


def test_a_misspelt_word_is_found_by_its_trigrams_only():
    index = TextIndex(TEXTS)
    assert not index.word_scores(["cereql"]).any()
    assert TEXTS.distinct[int(index.trigram_scores(["cereql"]).argmax())] == "cold cereal 12 oz"


def test_bm25_worked_out_by_hand():
    index = TextIndex(TEXTS)
    index.set(k1=1.2, b=0.75)
    # "dog": in 1 of 4 texts; the text has 2 of on average 13 / 4 words. Lucene's variant: idf * tf / (tf + norm).
    idf = np.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    norm = 1.2 * (0.25 + 0.75 * 2 / (13 / 4))
    np.testing.assert_allclose(index.word_scores(["dog"]).max(), idf / (1 + norm), rtol=1e-5)
