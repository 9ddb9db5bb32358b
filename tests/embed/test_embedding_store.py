import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from onesearch.embed import embed_catalogue
from onesearch.embed.static import StaticEncoder
from onesearch.errors import UserError

WORDS = [f"w{i}" for i in range(20)]


class Counting(StaticEncoder):
    """A real encoder that notes what it was asked for, and stops when `patience` texts were asked for."""

    def __init__(self, seed: int = 0, patience: int = 10**9) -> None:
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token=WORDS[0]))
        tokenizer.pre_tokenizer = Whitespace()
        super().__init__("counting", tokenizer, np.random.default_rng(seed).standard_normal((20, 3)).astype(np.float32))
        self.asked: list[str] = []
        self.patience = patience

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(self.asked) + len(texts) > self.patience:
            raise KeyboardInterrupt
        self.asked += texts
        return super().encode(texts)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.sampled_from(WORDS)), batch=st.integers(1, 9))
def test_the_map_holds_what_the_encoder_says(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], batch: int
) -> None:
    encoder = Counting()
    vectors = embed_catalogue(texts, encoder, tmp_path_factory.mktemp("store"), batch=batch)
    assert sorted(encoder.asked) == sorted(set(texts))  # identical texts once
    np.testing.assert_array_equal(vectors, Counting().encode(texts))
    assert vectors.dtype == np.float32


def test_a_finished_catalogue_is_not_encoded_again(tmp_path: Path) -> None:
    embed_catalogue(WORDS, Counting(), tmp_path)
    encoder = Counting()
    embed_catalogue(WORDS, encoder, tmp_path)
    assert encoder.asked == WORDS[:1]  # only the check that it is still the same encoder


def test_an_interrupted_catalogue_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed_catalogue(WORDS, Counting(patience=14), tmp_path, batch=5)
    assert not (tmp_path / "vectors.npy").exists()  # nobody takes half a catalogue for a whole one
    encoder, seen = Counting(), []
    vectors = embed_catalogue(
        WORDS, encoder, tmp_path, batch=5, progress=lambda done, total: seen.append((done, total))
    )
    assert encoder.asked == WORDS[:1] + WORDS[10:]
    assert seen == [(10, 20), (15, 20), (20, 20)]
    np.testing.assert_array_equal(vectors, Counting().encode(WORDS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["vectors.json", "vectors.npy"]


def test_an_interruption_between_the_last_batch_and_the_end_loses_nothing(tmp_path: Path) -> None:
    embed_catalogue(WORDS, Counting(), tmp_path)
    (tmp_path / "vectors.npy").rename(tmp_path / "vectors.partial.npy")
    encoder = Counting()
    np.testing.assert_array_equal(embed_catalogue(WORDS, encoder, tmp_path), Counting().encode(WORDS))
    assert encoder.asked == WORDS[:1]


@pytest.mark.parametrize("change", ["texts", "weights", "state"])
def test_what_belongs_to_something_else_is_made_anew(tmp_path: Path, change: str) -> None:
    embed_catalogue(WORDS, Counting(), tmp_path)
    texts, encoder = list(WORDS), Counting()
    if change == "texts":
        texts[-1] = "w3"
    elif change == "weights":
        encoder = Counting(seed=1)
    else:
        state = json.loads((tmp_path / "vectors.json").read_text())
        (tmp_path / "vectors.json").write_text(json.dumps({**state, "dimension": 4}))
    vectors = embed_catalogue(texts, encoder, tmp_path)
    np.testing.assert_array_equal(vectors, Counting(seed=change == "weights").encode(texts))


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match="disk is full"):
        embed_catalogue(WORDS, Counting(), tmp_path)
    assert not list(tmp_path.iterdir())
