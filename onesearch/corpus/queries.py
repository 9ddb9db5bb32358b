"""Queries derived from what was bought, for a log in which nobody typed any.

Personalised product search is studied on purchase logs by deriving the query from the fields of the item bought, as in
Ai, Zhang, Bi, Chen, Croft: Learning a Hierarchical Embedding Model for Personalized Product Search, SIGIR 2017
(https://arxiv.org/abs/1708.08123), who join the words of the category path and drop repeated ones. So here, with two
deviations: the fields vary (category; type; type and size; category and brand), and half of the queries are disturbed
the way people type: a word dropped, the words in another order, a letter wrong. Kind and disturbance are recorded.

These are **not** queries that anybody typed: results on them say how well a system finds what a household wants given
the name of a shelf, not how well it understands people's language.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.schema import QUERY_KINDS, QUERY_NOISE

DISTURBED = 0.5
"""Share of the queries that get one disturbance, where their text allows any."""

SHORTEST_MISSPELT = 4
"""Letters a word must have to be misspelt."""


def clean(text: pl.Expr) -> pl.Expr:
    """Lower case; separators become single spaces, points stay within numbers; repeated words are dropped.

    >>> pl.select(clean(pl.lit("DRY BN/VEG - Rice: DRY 8.8  OZ."))).item()
    'dry bn veg rice 8.8 oz'
    """
    spaced = text.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}.%]+", " ")
    words = (
        spaced.str.replace_all(r"\.+([^\d.]|$)", " ${1}")
        .str.split(" ")
        .list.eval(pl.element().filter(pl.element() != ""))
    )
    return words.list.unique(maintain_order=True).list.join(" ")


def derive(fields: pl.DataFrame, bought: NDArray[np.integer], seed: int) -> pl.DataFrame:
    """Derive the query of every event.

    Args:
        fields: (N) items with the text columns `category`, `type`, `size` and `brand`, null where not known.
        bought: (E,) the row in `fields` of each event's item.
        seed: of kinds and disturbances.

    Returns:
        (E) rows `query`, `query_kind`, `query_noise`; all null for an item without any of the fields.
    """
    rng = np.random.default_rng(seed)
    kind = _draw(rng, _texts_of(fields).select(pl.all().is_not_null()).to_numpy(), bought)
    vocabulary, text_of = _distinct(_texts_of(fields))
    text = np.where(kind < 0, -1, text_of[bought, kind])
    words = _Words(vocabulary)
    noise = np.zeros(len(bought), np.int8)
    noisy = np.flatnonzero((rng.random(len(bought)) < DISTURBED) & (text >= 0))
    noise[noisy] = _draw(rng, words.possible, text[noisy]).clip(0)
    query = pl.Series([*vocabulary, None], dtype=pl.String).gather(np.where(text < 0, len(vocabulary), text)).to_numpy()
    query = query.astype(object)
    for name, disturb in (("dropped", words.dropped), ("shuffled", words.shuffled), ("misspelt", words.misspelt)):
        chosen = np.flatnonzero(noise == QUERY_NOISE.index(name))
        query[chosen] = disturb(rng, text[chosen]).to_numpy()
    known = pl.Series(text >= 0)
    frame = pl.DataFrame({"query": pl.Series(query, dtype=pl.String), "known": known})
    return frame.select(
        "query",
        query_kind=pl.when("known").then(pl.Series(QUERY_KINDS).gather(kind.clip(0))),
        query_noise=pl.when("known").then(pl.Series(QUERY_NOISE).gather(noise)),
    )


def _texts_of(fields: pl.DataFrame) -> pl.DataFrame:
    """(N) rows, one column per kind of `QUERY_KINDS`: the clean text, null where a field is missing."""
    category, type_, size, brand = (pl.col(name) for name in ("category", "type", "size", "brand"))
    texts = (category, type_, pl.concat_str(type_, size, separator=" "), pl.concat_str(category, brand, separator=" "))
    cleaned = fields.select(clean(text).alias(kind) for kind, text in zip(QUERY_KINDS, texts, strict=True))
    return cleaned.select(pl.when(pl.all() != "").then(pl.all()))


def _distinct(texts: pl.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts, and the (N, kinds) place of each text among them, -1 for null."""
    stacked = pl.concat([texts[name] for name in texts.columns])
    vocabulary = stacked.drop_nulls().unique(maintain_order=True)
    places = stacked.replace_strict(vocabulary, pl.int_range(len(vocabulary), eager=True), default=None)
    return vocabulary.to_list(), places.fill_null(-1).to_numpy().reshape(len(texts.columns), -1).T


def _draw(rng: np.random.Generator, allowed: NDArray[np.bool_], row: NDArray[np.integer]) -> NDArray[np.int64]:
    """(n,) per row number one of the allowed columns, uniformly; -1 where none is."""
    count = allowed.sum(axis=1)
    order = np.argsort(~allowed, axis=1, kind="stable")  # the allowed columns first
    rank = (rng.random(len(row)) * count[row]).astype(np.int64)
    return np.where(count[row] > 0, order[row, rank], -1)


class _Words:
    """V distinct texts as words: (V, W) numbers of words, -1 behind the last one; disturbs many texts at once."""

    def __init__(self, texts: list[str]) -> None:
        split = pl.Series(texts, dtype=pl.String).str.split(" ")
        self.count = split.list.len().to_numpy().astype(np.int64)
        long = pl.DataFrame({"text": np.repeat(np.arange(len(texts)), self.count), "word": split.explode()})
        self.spelling = long["word"].unique(maintain_order=True)
        numbers = long["word"].replace_strict(self.spelling, pl.int_range(len(self.spelling), eager=True)).to_numpy()
        self.numbers = np.full((len(texts), int(self.count.max(initial=1))), -1, np.int64)
        place = np.arange(len(long)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        self.numbers[long["text"].to_numpy(), place] = numbers
        alphabetic = self.spelling.str.contains(rf"^[a-z]{{{SHORTEST_MISSPELT},}}$").to_numpy()
        self.misspellable = np.append(alphabetic, False)[self.numbers]

    @property
    def possible(self) -> NDArray[np.bool_]:
        """(V, noises) which of `QUERY_NOISE` each text allows; "clean" is none."""
        several = self.count > 1
        return np.stack([np.zeros(len(several), bool), several, several, self.misspellable.any(axis=1)], axis=1)

    def dropped(self, rng: np.random.Generator, text: NDArray[np.integer]) -> pl.Series:
        """The texts without one of their words."""
        numbers = self.numbers[text]
        numbers[np.arange(len(text)), (rng.random(len(text)) * self.count[text]).astype(np.int64)] = -1
        return self._join(numbers)

    def shuffled(self, rng: np.random.Generator, text: NDArray[np.integer]) -> pl.Series:
        """The texts with their words in another order; an order that came out unchanged is turned by one word."""
        numbers = self.numbers[text]
        width = np.arange(numbers.shape[1])
        order = np.argsort(np.where(width < self.count[text, None], rng.random(numbers.shape), 2.0), axis=1)
        unchanged = (order == width).all(axis=1)[:, None] & (width < self.count[text, None])
        order = np.where(unchanged, (width + 1) % self.count[text, None], order)
        return self._join(np.take_along_axis(numbers, order, axis=1))

    def misspelt(self, rng: np.random.Generator, text: NDArray[np.integer]) -> pl.Series:
        """The texts with one letter of one longer word replaced by another letter."""
        numbers = self.numbers[text]
        place = _draw(rng, self.misspellable, text)
        word = self.spelling.gather(numbers[np.arange(len(text)), place])
        letters = word.to_numpy().astype("S")  # a to z only
        at = (rng.random(len(text)) * word.str.len_chars().to_numpy()).astype(np.int64)
        code = letters.view(np.uint8).reshape(len(text), -1).copy() if len(text) else np.zeros((0, 1), np.uint8)
        rows = np.arange(len(text))
        code[rows, at] = (code[rows, at] - ord("a") + rng.integers(1, 26, len(text))) % 26 + ord("a")
        wrong = pl.Series(np.ascontiguousarray(code).view(f"S{code.shape[1]}").ravel().astype(str), dtype=pl.String)
        return self._join(numbers, wrong, place)

    def _join(
        self, numbers: NDArray[np.int64], other: pl.Series | None = None, at: NDArray[np.int64] | None = None
    ) -> pl.Series:
        """The texts of (n, W) words, `other` standing in place `at` of each row."""
        spelling = pl.concat([self.spelling, pl.Series([None], dtype=pl.String)])
        columns = []
        for place in range(numbers.shape[1]):
            word = spelling.gather(np.where(numbers[:, place] < 0, len(self.spelling), numbers[:, place]))
            if other is not None and at is not None:
                word = other.zip_with(pl.Series(at == place), word)
            columns.append(word.alias(str(place)))
        return pl.DataFrame(columns).select(pl.concat_str(pl.all(), separator=" ", ignore_nulls=True)).to_series()
