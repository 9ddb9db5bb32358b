"""One space for queries and items in which a cosine says whether a past purchase matters for a query.

Half of a vector is lexical, half semantic, so that `cerael` finds cereal and `pop` may find soft drinks:

- lexical: TF-IDF over the character trigrams of each word, hashed, projected on the leading singular vectors of the
  catalogue's texts (latent semantic indexing; Deerwester et al. 1990). A misspelt word keeps most of its trigrams.
- semantic: the run's text encoder, projected on the leading singular vectors of the catalogue's texts.

The trigrams of a text are the sum of those of its words, so they are cut once per distinct word, not once per text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse
import Stemmer
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize
from sklearn.utils.extmath import randomized_svd

from onesearch.dots import dots_of_pairs
from onesearch.embed import TextEncoder
from onesearch.files import atomic_path

TRIGRAMS = 2**13
"""Hashed; two trigrams of one catalogue seldom meet in one place."""

TERMS = 2 * TRIGRAMS
"""Places for trigrams, followed by as many for whole words (stemmed)."""

_STEMMER = Stemmer.Stemmer("english")

HALF = 64
"""Dimensions of each half."""


@dataclass(frozen=True)
class RelevantTexts:
    """n texts in the relevance space.

    Attributes:
        vectors: (n, 128) float32 unit vectors; a text without a known trigram has zeros in the lexical half.
        weights: (n, TRIGRAMS) sparse; the inverse document frequencies of the text's trigrams, scaled to sum 1.
    """

    vectors: NDArray[np.float32]
    weights: scipy.sparse.csr_matrix

    @cached_property
    def present(self) -> NDArray[np.uint8]:
        """(n, TRIGRAMS / 8) one bit a trigram, set where the text has it; 2 KB a text, which only items need."""
        return _bits(self.weights)

    def take(self, rows: NDArray[np.integer]) -> RelevantTexts:
        """Some of the texts."""
        return RelevantTexts(self.vectors[rows], self.weights[rows])

    @classmethod
    def joined(cls, parts: Sequence[RelevantTexts]) -> RelevantTexts:
        """The texts of all parts."""
        weights = scipy.sparse.vstack([part.weights for part in parts], "csr")
        return cls(np.concatenate([part.vectors for part in parts]), weights)

    def padded(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(n, G) trigrams of each text and their weights, G the most that one of them has (1 at least)."""
        length = np.diff(self.weights.indptr)
        filled = np.arange(max(int(length.max(initial=0)), 1)) < length[:, None]
        trigrams, weights = np.zeros(filled.shape, np.int64), np.zeros(filled.shape, np.float32)
        trigrams[filled], weights[filled] = self.weights.indices, self.weights.data
        return trigrams, weights

    def cosine(
        self, edges: NDArray[np.integer], others: RelevantTexts, other: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """(P,) cosines of pairs of one of these texts and one of the others; text r's are `edges[r]:edges[r + 1]`."""
        begin, place = (torch.from_numpy(one.astype(np.int64)) for one in (edges, other))
        found = dots_of_pairs(torch.from_numpy(self.vectors), torch.from_numpy(others.vectors), begin, place)
        cosines: NDArray[np.float32] = found.numpy()
        return cosines

    def covered(
        self, row: NDArray[np.integer], others: RelevantTexts, other: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """(P,) for pairs of one of these texts (a query) and one of the others (an item): how much of the query's
        trigram weight the item has too, from 0 to 1."""
        start, end = self.weights.indptr[row], self.weights.indptr[row + 1]
        length = end - start
        pair = np.repeat(np.arange(len(row)), length)
        place = np.arange(len(pair)) + np.repeat(start - np.cumsum(length) + length, length)
        trigram = self.weights.indices[place]
        bit = others.present[other[pair], trigram >> 3] >> (trigram & 7).astype(np.uint8) & 1
        return np.bincount(pair, self.weights.data[place] * bit, len(row)).astype(np.float32)


class RelevanceSpace:
    """Maps texts to `RelevantTexts`."""

    def __init__(
        self,
        encoder: TextEncoder,
        idf: NDArray[np.float32],
        lexical: NDArray[np.float32],
        semantic: NDArray[np.float32],
    ) -> None:
        self.encoder, self.idf, self.lexical, self.semantic = encoder, idf, lexical, semantic
        self._letters = HashingVectorizer(
            analyzer="char_wb", ngram_range=(3, 3), n_features=TRIGRAMS, norm=None, alternate_sign=False
        )
        self._stems = HashingVectorizer(analyzer=_stems, n_features=TRIGRAMS, norm=None, alternate_sign=False)

    @classmethod
    def fit(cls, texts: Sequence[str], encoder: TextEncoder, seed: int = 0) -> RelevanceSpace:
        """Learn both projections from the distinct texts of a catalogue."""
        space = cls(encoder, np.ones(TERMS, np.float32), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))
        counts = space._terms(texts)
        seen = np.asarray((counts > 0).sum(0)).ravel()
        space.idf = np.where(seen > 0, np.log((1 + len(texts)) / (1 + seen)) + 1, 0).astype(np.float32)
        space.lexical = _leading(space._weighted(counts), seed)
        space.semantic = _leading(encoder.encode(texts), seed)
        return space

    def encode(self, texts: Sequence[str]) -> RelevantTexts:
        """The dot product of two texts' vectors is the mean of their lexical and semantic cosines."""
        counts = self._terms(texts)
        lexical = normalize(self._weighted(counts) @ self.lexical.T)
        semantic = normalize(self.encoder.encode(texts) @ self.semantic.T)
        vectors = np.hstack([lexical, semantic]).astype(np.float32) * np.float32(np.sqrt(0.5))
        weighed = (counts > 0).multiply(self.idf).tocsr().astype(np.float32)
        halves = [normalize(half, norm="l1") for half in (weighed[:, :TRIGRAMS], weighed[:, TRIGRAMS:])]
        weights = normalize(scipy.sparse.hstack(halves, "csr"), norm="l1")
        weights.eliminate_zeros()
        return RelevantTexts(vectors, weights)

    def _terms(self, texts: Sequence[str]) -> scipy.sparse.csr_matrix:
        words: dict[str, int] = {}
        column = [words.setdefault(word, len(words)) for text in texts for word in text.lower().split()]
        row = np.repeat(np.arange(len(texts)), [len(text.split()) for text in texts])
        shape = (len(texts), max(len(words), 1))
        count = scipy.sparse.csr_matrix((np.ones(len(column), np.float32), (row, column)), shape)
        distinct = list(words) or [""]
        parts = [of.transform(distinct).astype(np.float32) for of in (self._letters, self._stems)]
        return (count @ scipy.sparse.hstack(parts, "csr")).tocsr()

    def _weighted(self, counts: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
        return normalize(counts[:, :TRIGRAMS].multiply(self.idf[:TRIGRAMS]).tocsr())

    def save(self, folder: Path) -> None:
        """Write `relevance.safetensors`."""
        with atomic_path(folder / "relevance.safetensors") as path:
            save_file({"idf": self.idf, "lexical": self.lexical, "semantic": self.semantic}, path)

    @classmethod
    def load(cls, folder: Path, encoder: TextEncoder) -> RelevanceSpace:
        arrays = load_file(folder / "relevance.safetensors")
        return cls(encoder, arrays["idf"], arrays["lexical"], arrays["semantic"])


def _stems(text: str) -> list[str]:
    """Stemmed words and numbers.

    >>> _stems("cereals 12.5oz")
    ['cereal', '12', '5oz']
    """
    return _STEMMER.stemWords(re.findall(r"\w+", text))


def _leading(matrix: scipy.sparse.csr_matrix | NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """(d, features) the leading right singular vectors, d at most HALF."""
    width = min(HALF, *matrix.shape)
    return np.ascontiguousarray(randomized_svd(matrix, width, random_state=seed)[2], np.float32)


def _bits(weights: scipy.sparse.csr_matrix) -> NDArray[np.uint8]:
    """(n, TRIGRAMS / 8) uint8, a bit for every stored element."""
    row = np.repeat(np.arange(weights.shape[0]), np.diff(weights.indptr))
    bits = np.zeros((weights.shape[0], weights.shape[1] // 8), np.uint8)
    np.bitwise_or.at(bits, (row, weights.indices >> 3), np.left_shift(1, weights.indices & 7).astype(np.uint8))
    return bits
