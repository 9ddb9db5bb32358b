"""From a run's vectors to semantic IDs of its items.

OneSearch (https://arxiv.org/abs/2509.03236) fits its codebooks on queries and items together, and a query has a
semantic ID like an item (`queries` of `Method`). Ours: codebooks see each distinct vector once, and at most as many
queries as items, the most frequent ones, since spellings nobody repeats would fill the codebooks; a last level of ranks
makes the semantic IDs of items unique (`quantizers/uniqueness.py`), which a query does not have; and what several views
of a product are where only texts are known: its own text and the searches that most often led to it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed import behaviour_vectors
from onesearch.embed.keywords import Keywords, item_keyword_texts
from onesearch.embed.pictures import VIEWS
from onesearch.embed.recipe import BOUGHT, Recipe, run_alignment
from onesearch.embed.store import stored_vectors
from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json, write_json
from onesearch.methods import Method, find_method
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
from quantizers.metrics import independent_coding_rate, reconstruction_error
from quantizers.quantizer import Quantizer, load_quantizer
from quantizers.uniqueness import append_rank_level

if TYPE_CHECKING:
    from onesearch.embed.views import Views  # imports torch, which takes seconds

SEARCHES: Final = 3
"""At most so many searches are views of a product: its own text must stay a good part of their mean."""
_ROWS: Final = 16_384

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What came of a method.

    Attributes:
        quantizer: fitted.
        codes: (N, L) learned codes of the items.
        vectors: (N, D) what they stand for.
        recipe: of the vectors; where they are of pictures, the name of the image encoder.
    """

    quantizer: Quantizer
    codes: NDArray[np.int32]
    vectors: NDArray[np.float32]
    recipe: Recipe | str


def make_semantic_ids(run: Run) -> None:
    """Quantize the items of a run and write `sid/`: table, quantizer, recipe of the vectors, usage.

    Raises:
        UserError: something that the method needs is not there, or the vectors or the sizes of levels do not do.
    """
    method, corpus = find_method(run.settings), Corpus.load(run.folder / "corpus")
    split = make_split(corpus, run.settings.split)
    folder = run.folder / "sid"
    on_sale = np.ones(len(corpus.items), bool)
    if (folder / "table.json").exists():
        on_sale = SidTable.load(folder).removed_of(corpus.items["item_id"]) == 0
    fitted = fit_method(run, method, corpus, split, on_sale)
    popularity = np.bincount(corpus.item[split == TRAIN], minlength=len(corpus.items))
    by_popularity = np.argsort(np.argsort(-popularity, kind="stable"), kind="stable").astype(np.int32)
    codes, sizes = fitted.codes, tuple(fitted.quantizer.level_sizes)
    if method.last_level is not None:
        with told("last_level"):
            codes = append_rank_level(codes, by_popularity, method.last_level)
        sizes = (*sizes, method.last_level)
    SidTable(corpus.items["item_id"], codes, sizes, by_popularity).after(folder).save(folder)
    with atomic_path(folder / "quantizer") as path:
        fitted.quantizer.save_pretrained(path)
    with atomic_path(folder / "recipe") as path:
        path.mkdir()
        write_json(path / "method.json", asdict(method))
        if isinstance(fitted.recipe, Recipe):
            fitted.recipe.save(path)
        else:
            write_json(path / "pictures.json", {"image_encoder": fitted.recipe})
    _write_usage(folder / "usage.json", fitted, codes, sizes)


def text_quantizer(run: Run, corpus: Corpus, split: NDArray[np.int8]) -> tuple[Quantizer, NDArray[np.float32]] | None:
    """The saved quantizer of a run and the (N, D) vectors of its items; None where it is of pictures or there is none.

    Raises:
        UserError: the quantizer or the vectors do not do.
    """
    folder = run.folder / "sid"
    if not (folder / "quantizer").exists() or not (folder / "recipe/recipe.json").exists():
        return None
    with told(folder / "quantizer", "run `onesearch quantize` again"):
        quantizer = load_quantizer(folder / "quantizer")
    return quantizer, _item_vectors(run, Recipe.load(folder / "recipe"), corpus, split)


def of_pictures(folder: Path) -> bool:
    """Whether the semantic IDs in a folder are of pictures."""
    about = folder / "recipe/method.json"
    return about.exists() and read_json(about)["views"] == "pictures"


def method_inputs(run: Run) -> dict[str, Any]:
    """What semantic IDs depend on besides the run's settings and vectors: the method as decided, and the alignment."""
    method, alignment = find_method(run.settings), run.folder / "models/align"
    aligned = {"align": stamps(alignment)} if method.align and alignment.exists() else {}
    return {"method": asdict(method), **aligned}


def fit_method(
    run: Run, method: Method, corpus: Corpus, split: NDArray[np.int8], on_sale: NDArray[np.bool_] | None = None
) -> Fitted:
    """Fit a method's quantizer on the vectors of a run, and encode its items.

    Args:
        on_sale: (N,) which items it is fitted on; by default all.

    Raises:
        UserError: something that the method needs is not there, or the vectors do not do.
    """
    quantizer: Any = method.quantizer()
    if method.views == "pictures":
        pictures = pictured(run.folder / VIEWS, corpus.items)
        codes = _learn_views(quantizer, method, pictures.vectors, pictures.item, corpus, on_sale)
        return Fitted(quantizer, codes, pictures.item_vectors(), pictures.encoder)
    recipe = Recipe(
        run.settings.encoder,
        run_alignment(run.folder, run.settings.encoder) if method.align else None,
        Keywords.of(corpus) if method.keywords else None,
        method.behaviour,
    )
    vectors = _item_vectors(run, recipe, corpus, split)
    if method.views == "searches":
        query, item = _searches(corpus, split)
        asked, place = np.unique(query, return_inverse=True)
        views = np.concatenate([vectors, recipe.of_queries([corpus.meant[q] for q in asked])[place]])
        product = np.concatenate([np.arange(len(vectors)), item])
        return Fitted(quantizer, _learn_views(quantizer, method, views, product, corpus, on_sale), vectors, recipe)
    seen = vectors if on_sale is None or on_sale.all() else vectors[on_sale]
    distinct = np.unique(seen, axis=0)  # a text that many items share counts once
    if method.queries:
        frequent = most_asked(corpus.query[(split == TRAIN) & (corpus.query >= 0)], len(distinct))
        queries = recipe.of_queries([corpus.meant[q] for q in frequent])
        distinct = np.unique(np.concatenate([distinct, queries]), axis=0)
    _learn(quantizer, method, distinct)
    # `assign` holds the capacities of balanced levels, which only a whole catalogue has
    balanced = method.arguments.get("balance") in ("last", "all")
    return Fitted(quantizer, quantizer.assign(vectors) if balanced else quantizer.encode(vectors), vectors, recipe)


def _learn_views(
    quantizer: Any,
    method: Method,
    views: NDArray[np.float32],
    product: NDArray[np.int64],
    corpus: Corpus,
    on_sale: NDArray[np.bool_] | None,
) -> NDArray[np.int32]:
    """Fit on (V, D) views of the items on sale, with (V,) items that they show; (N, L) codes of all items."""
    given = (views, product, _categories(corpus)[product])
    if on_sale is not None and not on_sale.all():
        given = (views[on_sale[product]], given[1][on_sale[product]], given[2][on_sale[product]])
    _learn(quantizer, method, *given)
    codes: NDArray[np.int32] = quantizer.encode_products(views, product)
    return codes


def item_vectors(run: Run, corpus: Corpus, split: NDArray[np.int8]) -> NDArray[np.float32]:
    """(N, D') the vectors that the semantic IDs of a run stand for, of its items.

    Raises:
        UserError: there are no semantic IDs yet.
    """
    folder = run.folder / "sid/recipe"
    if of_pictures(run.folder / "sid"):
        return pictured(run.folder / VIEWS, corpus.items).item_vectors()
    return _item_vectors(run, Recipe.load(folder), corpus, split)


def most_asked(query: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """(E,) queries of events -> the distinct ones, the most frequent first, at most `most`.

    >>> most_asked(np.array([4, 7, 7, 2, 2, 9], np.int32), 3).tolist()
    [2, 7, 4]
    """
    distinct, count = np.unique(query, return_counts=True)
    return distinct[np.argsort(-count, kind="stable")[:most]]


def _item_vectors(run: Run, recipe: Recipe, corpus: Corpus, split: NDArray[np.int8]) -> NDArray[np.float32]:
    """(N, D') vectors of the items, checked."""
    vectors = stored_vectors(run.folder / "embeddings", len(corpus.items))
    for start in range(0, len(vectors), _ROWS):
        wrong = np.flatnonzero(~np.isfinite(vectors[start : start + _ROWS]).all(axis=1))
        if len(wrong):
            row = start + int(wrong[0])
            place = f"{run.folder / 'embeddings/vectors.npy'} row {row} (item {corpus.items['item_id'][row]})"
            raise UserError("this vector is not finite", place=place, remedy="run `onesearch embed` again")
    texts = [] if recipe.keywords is None else item_keyword_texts(corpus)
    bought = behaviour_vectors(corpus, split, BOUGHT, run.settings.seed) if recipe.behaviour else None
    return recipe.of_items(vectors, texts, bought)


def views_of(folder: Path, items: int) -> Views:
    """The vectors of the pictures of N items, some of which may have none.

    Raises:
        UserError: there are none, or they are of other items.
    """
    from onesearch.embed.views import load_views

    views = load_views(folder)
    if len(views.offsets) != items + 1:
        problem = f"pictures of {len(views.offsets) - 1:,} items, but there are {items:,}"
        raise UserError(problem, place=folder, remedy="run `onesearch embed` again")
    return views


def pictured(folder: Path, items: pl.DataFrame) -> Views:
    """The vectors of the pictures of N items, at least one each.

    Raises:
        UserError: there are none, they are of other items, or an item has none.
    """
    views = views_of(folder, len(items))
    without = np.flatnonzero(np.diff(views.offsets) == 0)
    if len(without):
        item = items["item_id"][int(without[0])]
        remedy = "give it one, leave it out of the catalogue, or use `views: searches`"
        raise UserError(f"{len(without):,} items have no picture, the first", place=folder, value=item, remedy=remedy)
    return views


def _searches(corpus: Corpus, split: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(V,) queries and (V,) items: of each item the at most `SEARCHES` training queries that most often led to it."""
    led = (split == TRAIN) & (corpus.kind > EVENT_KINDS.index("impression")) & (corpus.query >= 0)
    pair, times = np.unique(
        corpus.item[led].astype(np.int64) * max(len(corpus.queries), 1) + corpus.query[led], return_counts=True
    )
    item, query = np.divmod(pair, max(len(corpus.queries), 1))
    order = np.lexsort((query, -times, item))
    item, query = item[order], query[order]
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    rank = np.arange(len(item)) - np.repeat(starts, np.diff(starts, append=len(item)))
    return query[rank < SEARCHES], item[rank < SEARCHES]


def _categories(corpus: Corpus) -> NDArray[np.int64]:
    """(N,) the first category of each item as a number, -1 where it has none."""
    first = corpus.items["categories"].list.first()
    return first.rank("dense").cast(int).fill_null(0).to_numpy().astype(np.int64) - 1


def _learn(quantizer: Any, method: Method, *given: NDArray[Any]) -> None:
    """Fit; how much of a level is used is told for the catalogue afterwards, not for the vectors it is fitted on."""
    fitting = logging.getLogger("quantizers")
    before = fitting.level
    fitting.setLevel(logging.ERROR)
    try:
        with told(f"method {method.name}"):
            quantizer.fit(*given)
    finally:
        fitting.setLevel(before)


def _write_usage(path: Path, fitted: Fitted, codes: NDArray[np.int32], sizes: Sequence[int]) -> None:
    """Write how the codes are used; a learned level that uses less than half of its codes is warned about."""
    usage = [np.bincount(codes[:, level], minlength=size) for level, size in enumerate(sizes)]
    used = [int((count > 0).sum()) for count in usage]
    metrics = {
        "items": len(codes),
        "semantic_ids": len(np.unique(codes, axis=0)),
        "reconstruction_error": reconstruction_error(fitted.vectors, fitted.quantizer.decode(fitted.codes)),
        "items_with_learned_codes_of_their_own": independent_coding_rate(fitted.codes),
        "codes_in_use": used,
    }
    counts = [count.tolist() for count in usage]
    write_json(path, {"level_sizes": list(sizes), "usage": counts, "metrics": metrics})
    for level in range(fitted.codes.shape[1]):
        if 2 * used[level] < sizes[level]:
            log.warning(
                "level %s uses %d of its %d codes for %d items: give it fewer (level_sizes), or try another method",
                chr(ord("a") + level),
                used[level],
                sizes[level],
                len(codes),
            )


@contextmanager
def told(place: object, remedy: str | None = None) -> Iterator[None]:
    """What a quantizer finds wrong with vectors, sizes or files, as a mistake of the user with its place."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error), place=place, remedy=remedy) from error
