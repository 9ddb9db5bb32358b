"""The query tokenizer: the same pieces every time, every character known, nothing lost in saving."""

from pathlib import Path

import numpy as np
import pytest

from onesearch.context.tokenizer import QueryTokenizer
from onesearch.errors import UserError

TEXTS = ["cold cereal", "ground coffee", "Dish Soap", "crème fraîche", "狗粮", "cold brew coffee", "50% off"]


def test_training_twice_gives_the_same_pieces() -> None:
    first, second = QueryTokenizer.train(TEXTS), QueryTokenizer.train(iter(TEXTS))
    for one, other in zip(first.encode(TEXTS, 32), second.encode(TEXTS, 32), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(first) == len(second)


def test_every_character_of_the_corpus_is_known_in_any_order_and_case() -> None:
    tokenizer = QueryTokenizer.train(TEXTS)
    turned = [text[::-1].upper() for text in TEXTS] + ["corn flakes", "cerael"]
    ids, offsets = tokenizer.encode(turned, 64)
    assert QueryTokenizer.unknown not in ids[: offsets[len(TEXTS)]]
    assert (ids < len(tokenizer)).all()
    assert QueryTokenizer.unknown not in ids[offsets[-2] :], "a misspelt word of known letters"
    assert QueryTokenizer.unknown in tokenizer.encode(["żółw"], 64)[0]


def test_texts_are_cut_and_lie_one_after_the_other() -> None:
    tokenizer = QueryTokenizer.train(TEXTS)
    texts = ["", "cold cereal", "   ", "coffee " * 1000, "soap"]
    ids, offsets = tokenizer.encode(texts, 5)
    assert ids.dtype == np.int32 and len(ids) == offsets[-1]
    lengths = np.diff(offsets)
    assert lengths[0] == lengths[2] == 0, "an empty text has no tokens"
    assert lengths[3] == 5
    for place, text in enumerate(texts):
        np.testing.assert_array_equal(ids[offsets[place] : offsets[place + 1]], tokenizer.encode([text], 5)[0])
    assert tokenizer.encode([], 5)[1].tolist() == [0]


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    tokenizer = QueryTokenizer.train(TEXTS)
    tokenizer.save(tmp_path)
    for one, other in zip(tokenizer.encode(TEXTS, 9), QueryTokenizer.load(tmp_path).encode(TEXTS, 9), strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_text_and_no_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give items a title"):
        QueryTokenizer.train(["", "  "])
    with pytest.raises(UserError, match=r"tokenizer.model: no readable tokenizer"):
        QueryTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="no readable tokenizer"):
        QueryTokenizer.load(tmp_path)
