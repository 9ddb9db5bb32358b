"""Whether codebooks still fit a catalogue that has grown since they were fitted, and what their vectors are.

How well the codebooks still fit is measured against the items they were fitted on (the measure and its limits are
ours; papers on semantic IDs report codebooks that are never refitted):

- reconstruction error: mean squared distance of vectors to what their learned codes say, over the mean squared length
  of the fitted vectors about their mean, for both groups;
- unseen prefixes: the share of new items below a prefix that no fitted item has, beside the share of fitted items whose
  prefix is theirs alone, which is what leaving one fitted item out would show;
- how many new items had to take another last learned code, because theirs was full.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import Corpus, make_split
from onesearch.embed import behaviour_vectors
from onesearch.embed.keywords import item_keyword_texts
from onesearch.embed.pictures import VIEWS
from onesearch.embed.recipe import BOUGHT, Recipe
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.run import Run
from onesearch.semantic_ids import of_pictures, pictured
from onesearch.sid import SidTable
from quantizers import Quantizer, load_quantizer
from quantizers.metrics import prefix_ids

if TYPE_CHECKING:
    from onesearch.embed.views import Views  # imports torch, which takes seconds

LEAST_ITEMS: Final = 50
"""Fewer new items say nothing about the codebooks."""
MOST_ERROR: Final = 1.25
"""A refit is due where new items are reconstructed this many times worse than the fitted ones."""
MOST_UNSEEN: Final = 0.10
"""... or where the share below unseen prefixes is this much above that of the fitted items, at any learned level."""
MOST_MOVED: Final = 0.05
"""... or where more than this share of the new items had to take another last learned code."""

SAMPLE: Final = 1 << 16
"""Rows of a group that are measured at most, evenly spaced."""
SAME_CODES: Final = 0.8
"""Share of the fitted items whose first code must be found again, or their vectors are not those of the fit."""


@dataclass(frozen=True)
class Drift:
    """How n new items fit the codebooks, beside the fitted ones.

    Attributes:
        error, fitted_error: reconstruction errors; `ratio` is the first over the second (1 where both are 0).
        unseen, fitted_unseen: per learned level, the shares below unseen prefixes.
    """

    items: int
    error: float
    fitted_error: float
    ratio: float
    unseen: list[float]
    fitted_unseen: list[float]


class Vectors(ABC):
    """What is quantized, for any rows of the catalogue, and the quantizer."""

    quantizer: Quantizer
    bought_share = 0.0
    """Of co-purchases in the vectors; new items have none."""

    @abstractmethod
    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D') vectors of items, ascending rows."""

    @abstractmethod
    def encode(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, L) learned codes of items, ascending rows."""

    def squared_distance(self, rows: NDArray[np.int64]) -> float:
        """Mean squared distance of vectors to what their learned codes say."""
        total = 0.0
        for block in _blocks(rows):
            said = self.quantizer.decode(self.encode(block))
            total += float(np.square(self.rows(block) - said, dtype=np.float64).sum())
        return total / max(len(rows), 1)

    def spread(self, rows: NDArray[np.int64]) -> float:
        """Mean squared length about the mean."""
        squares, total = 0.0, np.float64(0)
        for block in _blocks(rows):
            vectors = self.rows(block).astype(np.float64)
            squares += float(np.square(vectors).sum())
            total = total + vectors.sum(0)
        return squares / len(rows) - float(np.square(total / len(rows)).sum())


@dataclass(frozen=True)
class TextVectors(Vectors):
    """Of texts.

    Attributes:
        corpus: of which only the items are read.
        text: (N, D) memory map.
        bought: (F, BOUGHT) co-purchase vectors of the first F items, those of the fit; None where they have no share.
        recipe: by which the vectors of the fit were made.
    """

    corpus: Corpus
    text: NDArray[np.float32]
    bought: NDArray[np.float32] | None
    recipe: Recipe
    quantizer: Quantizer

    @property
    def bought_share(self) -> float:  # type: ignore[override]  # of a class that has a recipe
        """Of co-purchases in the vectors."""
        return self.recipe.behaviour

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D') vectors; an item that came after the fit has no co-purchase vector."""
        bought = None
        if self.bought is not None:
            bought = np.zeros((len(rows), BOUGHT), np.float32)
            known = rows < len(self.bought)
            bought[known] = self.bought[rows[known]]
        texts = []
        if self.recipe.keywords is not None:
            texts = item_keyword_texts(replace(self.corpus, items=self.corpus.items[rows]))
        return self.recipe.of_items(np.asarray(self.text[rows]), texts, bought)

    def encode(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, L) learned codes."""
        parts = [self.quantizer.encode(self.rows(block)) for block in _blocks(rows)]
        return np.concatenate([np.zeros((0, len(self.quantizer.level_sizes)), np.int32), *parts])


@dataclass(frozen=True)
class PictureVectors(Vectors):
    """Of the items' pictures; an item's vector is their mean."""

    views: Views
    quantizer: Any

    def rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) vectors."""
        return self._views(rows).item_vectors()

    def encode(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, L) learned codes."""
        views = [self._views(block) for block in _blocks(rows)]
        parts = [self.quantizer.encode_products(those.vectors, those.item) for those in views]
        return np.concatenate([np.zeros((0, len(self.quantizer.level_sizes)), np.int32), *parts])

    def _views(self, rows: NDArray[np.int64]) -> Views:
        """The views of these items alone."""
        first, count = self.views.offsets[rows], self.views.offsets[rows + 1] - self.views.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(count)])
        at = np.repeat(first - offsets[:-1], count) + np.arange(offsets[-1])
        return replace(self.views, vectors=np.asarray(self.views.vectors[at]), offsets=offsets)


def vectors_of(
    run: Run,
    corpus: Corpus,
    items: pl.DataFrame,
    table: SidTable,
    text: NDArray[np.float32],
    views: Path | None = None,
) -> Vectors:
    """What a run quantizes, checked: the fitted items must get the first codes that they have.

    Args:
        items: of the catalogue, which may have grown.
        text: (N, D) vectors of their texts.
        views: where the vectors of their pictures are; by default in the run.

    Raises:
        UserError: the run's semantic IDs were made from vectors of another kind, or an item lacks a picture.
    """
    folder = run.folder / "sid"
    remedy = "quantize the run again by a method that reads texts"
    quantizer, fitted = load_quantizer(folder / "quantizer"), table.fitted
    if len(table.level_sizes) not in (len(quantizer.level_sizes), len(quantizer.level_sizes) + 1):
        raise UserError("the quantizer has other levels than the table", place=folder, remedy=remedy)
    if of_pictures(folder):
        found: Vectors = PictureVectors(pictured(views or run.folder / VIEWS, items), quantizer)
    else:
        recipe, bought = Recipe.load(folder / "recipe"), None
        if recipe.behaviour:
            of_fit = replace(corpus, items=corpus.items.head(int((table.added == table.fit_version).sum())))
            bought = behaviour_vectors(of_fit, make_split(corpus, run.settings.split), BOUGHT, run.settings.seed)
        found = TextVectors(replace(corpus, items=items), text, bought, recipe, quantizer)
    sample = _spread(fitted, 4096)
    try:
        agree = float((found.encode(sample)[:, 0] == table.codes[sample, 0]).mean())
    except ValueError as error:
        raise UserError(f"items cannot be added: {error}", place=folder, remedy=remedy) from error
    if agree < SAME_CODES and not of_searches(run):
        problem = "semantic IDs of other vectors: so few existing items get their first code again"
        raise UserError(problem, place=folder, value=round(agree, 3), remedy=remedy)
    return found


def of_searches(run: Run) -> bool:
    """Whether the semantic IDs are of texts and of searches that led to them, which only fitted items have."""
    path = run.folder / "sid/recipe/method.json"
    return path.exists() and read_json(path)["views"] == "searches"


def _blocks(rows: NDArray[np.int64], size: int = 8192) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _spread(rows: NDArray[np.int64], most: int = SAMPLE) -> NDArray[np.int64]:
    """At most so many of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def measure_drift(table: SidTable, vectors: Vectors, rows: NDArray[np.int64]) -> Drift | None:
    """Drift of these items; None where there are none."""
    if not len(rows):
        return None
    fitted = table.fitted
    sample, measured = _spread(fitted), _spread(rows)
    learned = vectors.encode(measured)
    ids = prefix_ids(np.concatenate([table.codes[fitted, : learned.shape[1]], learned]))
    unseen, fitted_unseen = [], []
    for level in range(learned.shape[1]):
        seen, new = ids[: len(fitted), level], ids[len(fitted) :, level]
        unseen.append(float((~np.isin(new, seen)).mean()))
        fitted_unseen.append(float((np.bincount(seen)[seen] == 1).mean()))
    spread = vectors.spread(sample) or 1.0
    error, fitted_error = (vectors.squared_distance(one) / spread for one in (measured, sample))
    ratio = error / fitted_error if fitted_error > 1e-9 else 1.0 if error <= 1e-9 else float("inf")
    return Drift(len(rows), error, fitted_error, ratio, unseen, fitted_unseen)


def refit(drift: Drift | None, moved: int) -> tuple[bool, list[str]]:
    """Whether the codebooks should be fitted anew, and the reasons, with the limits they refer to.

    Args:
        drift: of all items added since the fit.
        moved: how many of them had to take another last learned code.
    """
    if drift is None:
        return False, ["no item was added since the fit"]
    if drift.items < LEAST_ITEMS:
        return False, [f"{drift.items} items added since the fit: at least {LEAST_ITEMS} are needed to judge by"]
    reasons = []
    if drift.ratio > MOST_ERROR:
        reasons.append(f"reconstruction error of new items {drift.ratio:.2f} times that of the fitted (> {MOST_ERROR})")
    for level, (new, old) in enumerate(zip(drift.unseen, drift.fitted_unseen, strict=True), 1):
        if new - old > MOST_UNSEEN:
            reasons.append(
                f"level {level}: {new:.0%} below unseen prefixes, fitted items {old:.0%} (> +{MOST_UNSEEN:.0%})"
            )
    if moved > MOST_MOVED * drift.items:
        reasons.append(f"{moved / drift.items:.0%} of the new items found their codes full (> {MOST_MOVED:.0%})")
    within = f"error ratio {drift.ratio:.2f}, unseen prefixes and full codes within their limits"
    return bool(reasons), reasons or [within]
