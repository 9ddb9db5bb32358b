"""Words of queries and items, and BM25 scores of every query against every distinct item text.

BM25 weights come from bm25s (Lu 2024, https://arxiv.org/abs/2407.03618), which computes them when indexing; scoring
many queries is then one sparse product. Beside words there are character trigrams, which still match where a word is
misspelt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray
from scipy import sparse

logging.getLogger("bm25s").setLevel(logging.WARNING)
_STEMMER = Stemmer.Stemmer("english")


def words(text: str) -> list[str]:
    """Stemmed lower-case words and numbers.

    >>> words("Cold Cereals, 12.5 OZ")
    ['cold', 'cereal', '12', '5', 'oz']
    """
    return _STEMMER.stemWords(re.findall(r"\w+", text.lower()))


def trigrams(text: str) -> list[str]:
    """The character trigrams of each word of three or more characters, with its ends marked.

    >>> trigrams("Soda 12")
    ['^so', 'sod', 'oda', 'da$']
    """
    marked = [f"^{word}$" for word in re.findall(r"\w+", text.lower()) if len(word) > 2]
    return [word[i : i + 3] for word in marked for i in range(len(word) - 2)]


@dataclass(frozen=True)
class Texts:
    """The T distinct texts of N items.

    Attributes:
        distinct: the texts, sorted.
        of_item: (N,) which text an item has.
    """

    distinct: list[str]
    of_item: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Group equal texts."""
        distinct, of_item = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        return cls(distinct.tolist(), of_item)


class Terms:
    """A vocabulary of texts, and texts as rows of term counts."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        # Sorted, because the order of a set of strings differs from run to run, and with it the last bits of a sum.
        self.vocabulary = {term: i for i, term in enumerate(sorted({term for text in texts for term in text}))}
        self.ids = [[self.vocabulary[term] for term in text] for text in texts]

    def rows(self, texts: Sequence[Sequence[str]]) -> sparse.csr_matrix:
        """(q, V) float32: 1 for every known term of each text."""
        found = [sorted({self.vocabulary[term] for term in text if term in self.vocabulary}) for text in texts]
        ends = np.cumsum([0, *map(len, found)])
        flat = np.fromiter((term for row in found for term in row), np.int32, count=int(ends[-1]))
        ones = np.ones(len(flat), np.float32)
        return sparse.csr_matrix((ones, flat, ends), shape=(len(texts), len(self.vocabulary)))

    def weights(self, k1: float, b: float) -> sparse.csr_matrix:
        """(V, T) float32 BM25 weights (Lucene's variant) of the indexed texts."""
        index = bm25s.BM25(method="lucene", k1=k1, b=b)
        index.index((self.ids, self.vocabulary), create_empty_token=False, show_progress=False)
        parts = index.scores["data"], index.scores["indices"], index.scores["indptr"]
        return sparse.csc_matrix(parts, shape=(len(self.ids), len(self.vocabulary))).T


class TextIndex:
    """BM25 of words and of character trigrams over distinct texts."""

    def __init__(self, texts: Texts) -> None:
        self._words = Terms([words(text) for text in texts.distinct])
        self._trigrams = Terms([trigrams(text) for text in texts.distinct])
        self.set(k1=1.2, b=0.75)

    def set(self, k1: float, b: float) -> None:
        """Weigh the terms anew."""
        self._word_weights = self._words.weights(k1, b)
        self._trigram_weights = self._trigrams.weights(k1, b)

    def word_scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(q, T) BM25 of words."""
        return (self._words.rows([words(query) for query in queries]) @ self._word_weights).toarray()

    def trigram_scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """(q, T) BM25 of character trigrams."""
        return (self._trigrams.rows([trigrams(query) for query in queries]) @ self._trigram_weights).toarray()


def relative(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """(q, T) scores as a share of the query's best one, so that long queries do not outweigh everything else."""
    best = scores.max(axis=1, keepdims=True)
    return np.divide(scores, best, out=np.zeros_like(scores), where=best > 0)
