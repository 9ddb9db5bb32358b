"""Static word-piece vectors: a text is the mean of the vectors of its tokens.

The vectors of the package `wordllama` (https://github.com/dleemiller/WordLlama) are token embeddings of a large
language model, compressed to 256 dimensions. They are read from the package's own files: its loader would ask a hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from onesearch.embed.text import readable, unit_rows
from onesearch.errors import UserError

BATCH = 1024


class StaticEncoder:
    """Means of V token vectors of width D.

    Args:
        name: how the encoder is called.
        tokenizer: gives ids below V.
        table: (V, D) token vectors.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, table: NDArray[np.float32]) -> None:
        self.name = name
        self.dimension = int(table.shape[1])
        self._tokenizer, self._table = tokenizer, table
        tokenizer.no_padding()
        tokenizer.no_truncation()

    @classmethod
    def wordllama(cls) -> StaticEncoder:
        """The vectors that ship inside the package `wordllama`, without importing it."""
        remedy = "pip install 'onesearch[demo]' (or wordllama itself)"
        package = find_spec("wordllama")
        if package is None or package.origin is None:
            raise UserError("the package wordllama is not installed", place="text encoder wordllama", remedy=remedy)
        folder = Path(package.origin).parent
        weights = folder / "weights" / "l2_supercat_256.safetensors"
        tokenizer = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
        for file in (weights, tokenizer):
            if not file.is_file():
                raise UserError(
                    "this wordllama lacks a file", place="text encoder wordllama", value=str(file), remedy=remedy
                )
        try:
            table = load_file(weights)["embedding.weight"].astype(np.float32)
        except (SafetensorError, KeyError) as error:
            raise UserError(f"unreadable weights: {error}", place=weights, remedy=remedy) from error
        return cls("wordllama", Tokenizer.from_file(str(tokenizer)), table)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a text; zeros where the text is blank."""
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), BATCH):
            vectors[start : start + BATCH] = self._sums(
                [readable(text).strip() for text in texts[start : start + BATCH]]
            )
        return unit_rows(vectors)

    def _sums(self, texts: list[str]) -> NDArray[np.float32]:
        """(n, D) sums over each text's tokens; scaled to unit length later, a sum is as good as a mean."""
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.array([len(tokens) for tokens in encoded])
        sums = np.zeros((len(texts), self.dimension), np.float32)
        filled = np.flatnonzero(lengths)  # reduceat would give an empty text the first token of the next one
        if len(filled):
            ids = np.concatenate([encoded[i].ids for i in filled])
            starts = np.concatenate([[0], np.cumsum(lengths[filled])[:-1]])
            sums[filled] = np.add.reduceat(self._table[ids], starts, axis=0)
        return sums
