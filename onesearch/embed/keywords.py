"""Keywords of a catalogue, found in the texts of items and queries, and what they add to a vector.

The keyword enhancement of OneSearch (https://arxiv.org/abs/2509.03236), the first two letters of its KHQE. Faithful:
`e^o = 1/2 (e + mean_j e_kw_j)` for items and queries, scaled to unit length; a text without keywords keeps its vector;
keywords are found by one Aho-Corasick automaton; one that is part of a longer one that was found is dropped.

Deviations: the paper has keywords of 18 attribute types, for items written by a language model; here they are the
values of whatever the catalogue has (brand, categories, attributes), and an item's own values count as found. Values
without a letter ("69", "12") or longer than `LONGEST` are no keywords: the former are in any text, the latter in none.
Ours: whole words only, between any signs, where the script has spaces between words; "tea" is not in "steak".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import ahocorasick
import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from onesearch.corpus import Corpus, item_texts
from onesearch.embed.text import readable, unit_rows
from onesearch.files import atomic_path

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""n texts -> (n, D) vectors."""

LONGEST: Final = 64
"""Characters of a keyword; a longer value is a sentence."""
BREAK: Final = "|"
"""Between the fields of a text: no keyword reaches across."""
_ROWS: Final = 8192
_NO_SPACES: Final = ((0x0E00, 0x0EFF), (0x1780, 0x17FF), (0x2E80, 0xA4CF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Scripts without spaces between words: Thai and Lao, Khmer, Chinese and Japanese."""


@dataclass(frozen=True)
class Found:
    """H times a keyword in a text, each pair once, by text and then keyword.

    Attributes:
        text: (H,) int64, the place of the text.
        keyword: (H,) int64, the number of the keyword.
    """

    text: NDArray[np.int64]
    keyword: NDArray[np.int64]


class Keywords:
    """K keywords and the automaton that finds them.

    Args:
        texts: what may be keywords, as people write them; the first of those that differ only in case or signs stays.

    Attributes:
        texts: K of them.

    >>> keywords = Keywords(["Cold Cereal", "CEREAL", "Acme", "12"])
    >>> found = keywords.find(["acme cold-cereal 12 pk", "cereals"])
    >>> [(int(text), keywords.texts[keyword]) for text, keyword in zip(found.text, found.keyword)]
    [(0, 'Cold Cereal'), (0, 'Acme')]
    """

    def __init__(self, texts: Iterable[str]) -> None:
        given = pl.DataFrame({"text": list(texts)}, schema={"text": pl.String})
        named = given.with_columns(key=_plain(given["text"])).unique("key", keep="first", maintain_order=True)
        chosen = named.filter(
            pl.col("key").str.contains(r"\p{L}")
            & pl.col("key").str.len_chars().is_between(2, LONGEST)
            & ~pl.col("key").str.contains(BREAK, literal=True)
        )
        self.texts: list[str] = chosen["text"].to_list()
        self._automaton = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, key in enumerate(chosen["key"]):
            self._automaton.add_word(key, number)
        self._automaton.make_automaton()
        self._length = chosen["key"].str.len_chars().to_numpy().astype(np.int64)
        inside = self._all(chosen["key"])
        whole, part = inside.text, inside.keyword
        whole, part = whole[whole != part], part[whole != part]
        self._parts, self._first = part, np.searchsorted(whole, np.arange(len(self.texts) + 1))

    @classmethod
    def of(cls, corpus: Corpus) -> Keywords:
        """Brands, categories and values of attributes of a catalogue."""
        brand, categories = pl.col("brand"), pl.col("categories")
        columns = (brand, categories.explode(), _values().explode())
        values = pl.concat([corpus.items.select(column.alias("value"))["value"] for column in columns])
        return cls(values.drop_nulls().unique(maintain_order=True))

    def find(self, texts: Sequence[str]) -> Found:
        """The keywords of N texts, without those that are part of a longer one found in the same text."""
        found = self._all(_plain(pl.Series([readable(text) for text in texts], dtype=pl.String)))
        # all parts of the keywords found, by text
        first, count = self._first[found.keyword], np.diff(self._first)[found.keyword]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count)
        dropped = np.repeat(found.text, count) * len(self.texts) + self._parts[place]
        kept = ~np.isin(found.text * len(self.texts) + found.keyword, dropped)
        return Found(found.text[kept], found.keyword[kept])

    def save(self, path: Path) -> None:
        """Write the keywords as a table for people and programs."""
        with atomic_path(path) as temporary:
            pl.DataFrame({"keyword": self.texts}, schema={"keyword": pl.String}).write_parquet(temporary)

    @classmethod
    def load(cls, path: Path) -> Keywords:
        """Read what `save` wrote."""
        return cls(pl.read_parquet(path)["keyword"])

    def _all(self, plain: pl.Series) -> Found:
        """Every keyword of N plain texts that stands there as whole words."""
        parts = [self._in_block(plain[start : start + _ROWS], start) for start in range(0, len(plain), _ROWS)]
        pair = np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
        return Found(*np.divmod(pair, max(len(self.texts), 1)))

    def _in_block(self, plain: pl.Series, first: int) -> NDArray[np.int64]:
        """(H,) text * K + keyword. The texts are read as one, so that the only loop is the automaton's own."""
        if not self.texts:
            return np.zeros(0, np.int64)
        joined = BREAK + BREAK.join(plain) + BREAK
        hits = np.fromiter(self._automaton.iter(joined), dtype=[("last", np.int64), ("keyword", np.int64)])
        begin, end = hits["last"] - self._length[hits["keyword"]] + 1, hits["last"] + 1
        signs = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        glued = _glues(signs)
        whole = ~(glued[begin - 1] & glued[begin]) & ~(glued[end - 1] & glued[end])
        starts = np.cumsum(np.concatenate([[1], plain.str.len_chars().to_numpy()[:-1].astype(np.int64) + 1]))
        text = np.searchsorted(starts, begin[whole], side="right") - 1 + first
        return np.asarray(text * len(self.texts) + hits["keyword"][whole])


def item_keyword_texts(corpus: Corpus) -> list[str]:
    """(N) what keywords of items are found in: the text that is embedded, and every value of the item's own."""
    own = corpus.items.select(
        pl.concat_list(pl.col("brand"), pl.col("categories").fill_null([]), _values().fill_null([]))
        .list.drop_nulls()
        .list.join(BREAK)
    ).to_series()
    return [f"{text}{BREAK}{values or ''}" for text, values in zip(item_texts(corpus), own, strict=True)]


def enhance(
    vectors: NDArray[np.float32], texts: Sequence[str], keywords: Keywords, encode: Encode
) -> NDArray[np.float32]:
    """(N, D) vectors of N texts -> (N, D): halfway to the mean of their keywords' vectors, at unit length.

    The vector of a text without keywords comes back as it was. A keyword is encoded once, however often it is found.
    """
    found = keywords.find(texts)
    enhanced = np.array(vectors, np.float32)
    if not len(found.text):
        return enhanced
    used, column = np.unique(found.keyword, return_inverse=True)
    table = encode([keywords.texts[number] for number in used]).astype(np.float64)
    count = np.bincount(found.text, minlength=len(texts))
    share = sparse.csr_array((1 / count[found.text], (found.text, column)), shape=(len(texts), len(used)))
    for start, end in pairwise([*range(0, len(texts), _ROWS), len(texts)]):
        some = np.flatnonzero(count[start:end]) + start
        enhanced[some] = unit_rows(((vectors[some] + share[some] @ table) / 2).astype(np.float32))
    return enhanced


def _values() -> pl.Expr:
    """The values of an item's attributes."""
    return pl.col("attributes").list.eval(pl.element().struct.field("value"))


def _plain(texts: pl.Series) -> pl.Series:
    """Lower case, single spaces for whatever is no letter, mark or number, and `BREAK` as it is.

    >>> _plain(pl.Series(["EGGS - X-LARGE", "Crème|brûlée!"])).to_list()
    ['eggs x large', 'crème|brûlée']
    """
    spaced = texts.str.to_lowercase().str.replace_all(r"[^\p{L}\p{M}\p{N}|]+", " ")
    return spaced.str.replace_all(r" ?\| ?", BREAK).str.strip_chars(" ")


def _glues(signs: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """(n,) whether a word goes on from the sign (a code point) to the next one of this kind."""
    glues = (signs != ord(" ")) & (signs != ord(BREAK))
    for low, high in _NO_SPACES:
        glues &= (signs < low) | (signs > high)
    return glues
