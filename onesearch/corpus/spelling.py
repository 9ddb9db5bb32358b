"""Words of queries that are typed wrongly, and the catalogue's words that are meant.

A word that the catalogue does not have is read as the catalogue's word one edit away (a letter wrong, missing or too
many, or two of them swapped) that people ask for most, if they ask for it RATIO times as often at least. So what many
people type stays as they type it, whatever the catalogue says. Candidates are found by symmetric deletes (SymSpell,
https://github.com/wolfgarbe/SymSpell); to compare with how often a word itself is typed is the idea of Cucerzan and
Brill: Spelling correction as an iterative process that exploits the collective knowledge of web users, EMNLP 2004.
What people ask is learnt from training events.

Only words of alphabets are mended, and no short ones: where a sign is a syllable or a word, and in three letters, one
edit makes another word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from symspellpy import SymSpell, Verbosity

from onesearch.corpus.reader import MENDED, SPELLING, Corpus
from onesearch.corpus.texts import item_texts
from onesearch.files import atomic_path, write_json

WORDS: Final = "words.parquet"

LETTERS: Final = 4
"""A word has so many at least."""

RATIO: Final = 20
"""So many times as often as the word itself is asked what it is read as; words that nobody else typed count as one."""

MOST: Final = 100_000
"""So many of the catalogue's words, the most frequent, are put in the place of others: bounds memory."""

REMEMBERED: Final = 2**16
"""Words whose reading is not looked up again."""

_WORD: Final = rf"\p{{L}}{{{LETTERS},}}"
_TYPED: Final = re.compile(rf"[^\W\d_]{{{LETTERS},}}")
_ALPHABETS: Final = "\u0590"
"""Latin, Greek, Cyrillic and Armenian come before it."""


class Spelling:
    """How words are read.

    Args:
        counts: the words that others may be read as, and how often people ask for them.
        kept: words near one of these that are meant as they are.
    """

    def __init__(self, counts: Mapping[str, int], kept: Collection[str]) -> None:
        self.counts, self.kept = dict(counts), frozenset(kept)
        self._near = _finder(self.counts)
        self._read = lru_cache(REMEMBERED)(self._look_up)

    @classmethod
    def learn(cls, corpus: Corpus, training: NDArray[np.bool_]) -> Spelling:
        """Of the catalogue's texts, and the queries of these events (E,)."""
        asked = np.bincount(corpus.query[training & (corpus.query >= 0)], minlength=len(corpus.queries))
        typed = pl.DataFrame({"text": pl.Series(corpus.queries, dtype=pl.String), "count": asked}).filter(asked > 0)
        counts = _words(typed).group_by("word").agg(pl.col("count").sum())
        sold = _words(pl.DataFrame({"text": pl.Series(item_texts(corpus), dtype=pl.String)})).unique()
        meant = counts.join(sold, on="word", how="semi").filter(pl.col("count") >= RATIO).sort("count", "word")[-MOST:]
        known = dict(meant.iter_rows())
        near = _finder(known)
        # a word that was typed once is never kept: whatever it may be read as is asked for RATIO times at least
        typed_often = counts.join(sold, on="word", how="anti").filter(pl.col("count") > 1)
        often = [word for word, count in typed_often.iter_rows() if 0 < known.get(near(word), 0) < RATIO * count]
        rare = [word for (word,) in sold.iter_rows() if word not in known and near(word)]
        return cls(known, [*often, *rare])

    def knowing(self, texts: Collection[str]) -> Spelling:
        """The same, but the words of these texts, of new items for instance, are kept."""
        new = _words(pl.DataFrame({"text": pl.Series(list(texts), dtype=pl.String)})).unique()["word"].to_list()
        return Spelling(self.counts, self.kept | {word for word in new if word not in self.counts and self._near(word)})

    def mended(self, text: str) -> str:
        """The text with every word as it is read."""
        return _TYPED.sub(lambda found: self._read(found.group()), text)

    def _look_up(self, typed: str) -> str:
        word = typed.lower()
        return typed if word in self.counts or word in self.kept else self._near(word) or typed

    def save(self, folder: Path) -> None:
        """Write `words.parquet`: what is kept has the count 0."""
        words = [*self.counts, *sorted(self.kept)]
        count = [*self.counts.values(), *([0] * len(self.kept))]
        with atomic_path(folder / WORDS) as path:
            pl.DataFrame({"word": words, "count": count}, {"word": pl.String, "count": pl.Int64}).write_parquet(path)

    @classmethod
    def load(cls, folder: Path) -> Spelling:
        """Read what `save` wrote; a folder without it reads every word as it is typed."""
        if not (folder / WORDS).exists():
            return cls({}, ())
        rows = pl.read_parquet(folder / WORDS)
        known = rows.filter(pl.col("count") > 0)
        return cls(dict(known.iter_rows()), rows.filter(pl.col("count") == 0)["word"].to_list())


def mend(corpus: Corpus, training: NDArray[np.bool_]) -> int:
    """Learn how words are read from these events (E,), and write it and the log's distinct queries that are read
    otherwise than they were typed into the corpus; tell how many these are, which `corpus.json` then says too."""
    folder = corpus.folder / SPELLING
    folder.mkdir(exist_ok=True)
    spelling = Spelling.learn(corpus, training)
    spelling.save(folder)
    read = ((number, spelling.mended(text)) for number, text in enumerate(corpus.queries))
    changed = [(number, text) for number, text in read if text != corpus.queries[number]]
    with atomic_path(folder / MENDED) as path:
        pl.DataFrame(changed, {"number": pl.Int64, "text": pl.String}, orient="row").write_parquet(path)
    write_json(corpus.folder / "corpus.json", {**corpus.info, "mended_queries": len(changed)})
    return len(changed)


def _words(texts: pl.DataFrame) -> pl.DataFrame:
    """The words of a column `text` that may be mended, in lower case, beside the other columns."""
    lower = pl.col("text").str.to_lowercase()
    found = texts.select(pl.exclude("text"), word=lower.str.extract_all(_WORD).list.unique()).explode("word")
    return found.drop_nulls("word").filter(pl.col("word").str.len_chars() >= LETTERS)


def _finder(counts: Mapping[str, int]) -> Callable[[str], str]:
    """Gives the most frequent of these words one edit from another word, or nothing."""
    symmetric = SymSpell(max_dictionary_edit_distance=1)
    for word, count in counts.items():
        symmetric.create_dictionary_entry(word, count)

    def near(word: str) -> str:
        if max(word) >= _ALPHABETS:
            return ""
        found = symmetric.lookup(word, Verbosity.TOP, max_edit_distance=1)
        return str(found[0].term) if found else ""

    return near
