"""Items that come and go after the codebooks were fitted: `onesearch quantize --add` and `--remove`.

New items are embedded as the others were and encoded by the frozen codebooks; no existing item's row or semantic ID
moves, so a trained generator finds a new item at once (it knows its codes, and reads its text). A collision is resolved
by the rule of `onesearch/placement.py`, or, where semantic IDs may be shared, by coming last in the leaf. A removed
item keeps row and semantic ID under a flag: nothing is freed. Added again, it is back under its old semantic ID, with
the row that the file gives it now. A new item has no events: its share of co-purchase vectors is zero.

How well the codebooks still fit is told with every change (`onesearch/drift.py`).

A change is written whole beside the run's folders (`NEXT`), and counts from the moment that folder has its name; then
its files take their places one by one. An interruption leaves the old state, or a decided change that `finish` carries
out: `change` does so first, and so does every step that the command line starts.

The steps `embed` and `quantize` are then recorded as done for the new files, so that a later `onesearch demo` does not
fit new codebooks: they are done again only if their settings or the source change, or if they are asked for
(`onesearch/refit.py`). `train` and `evaluate` are *not* recorded: `onesearch demo` trains on the grown table, while
`onesearch generate` goes on with the model there is. Preparing the corpus anew from a changed source starts from that
source: items that were added by file are not in it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.assortment_report import Report, reported, write_usage
from onesearch.corpus import Corpus, Rejects, item_texts
from onesearch.corpus.reader import SPELLING
from onesearch.corpus.rows import read_rows
from onesearch.corpus.schema import ITEMS, REQUIRED, TABLES
from onesearch.corpus.spelling import Spelling
from onesearch.corpus.tables import FILE, ROW
from onesearch.corpus.validate import check_items
from onesearch.drift import of_searches, vectors_of
from onesearch.embed import TextEncoder, embed_catalogue, load_text_encoder
from onesearch.embed.pictures import VIEWS, embed_pictures, encoded_pictures
from onesearch.errors import UserError
from onesearch.files import atomic_path, checksum, read_json, write_json
from onesearch.pipeline import STEPS, Progress
from onesearch.placement import place
from onesearch.run import Run
from onesearch.sid import SidTable
from quantizers.metrics import prefix_ids

NEXT: Final = "assortment.next"
"""Folder of a run with a change that is decided and not yet in its place."""


def change(run: Run, add: Path | None, remove: Sequence[str], progress: Progress | None = None) -> Report:
    """Add the items of a file and remove others, as one new version of the table.

    Args:
        add: rows as in `items.parquet` (or .jsonl, .csv).
        remove: item ids, or files with a column `item_id`.

    Raises:
        UserError: a row or an id does not fit, the steps before are not done, or there is no room.
            The run is as it was.
    """
    with run.lock():
        finish(run)
        _check_steps(run)
        corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
        if not table.item_ids.equals(corpus.items["item_id"]):
            raise UserError("the SID table is of another catalogue", place=run.folder / "sid", remedy="quantize again")
        gone = _rows_to_remove(table, remove)
        new, back = _rows_to_add(table, add)
        if not len(gone) + len(new) + len(back):
            raise UserError("nothing to add or to remove", place="command line", remedy="name items or a file")
        with atomic_path(run.folder / NEXT) as stage:
            stage.mkdir()
            report = _write(run, corpus, table, new, back, gone, _provenance(add), stage, progress)
        finish(run)
    return report


def finish(run: Run) -> bool:
    """Carry out a change that was decided and interrupted; tell whether there was one. Call it with the run's lock."""
    stage = run.folder / NEXT
    if not stage.exists():
        return False
    for source in sorted(path for path in stage.rglob("*") if path.is_file()):
        target = run.folder / source.relative_to(stage)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
    _each_step(run, lambda: None)
    shutil.rmtree(stage)
    return True


def _each_step(run: Run, work: Callable[[], None]) -> None:
    """Do this in place of each of the steps that a change brings up to date, unless it is up to date."""
    names = list(STEPS)
    for name in names[names.index("embed") : names.index("quantize") + 1]:
        if STEPS[name].needed(run):
            replace(STEPS[name], work=lambda run, progress: work()).do(run, lambda done, total: None)


def _check_steps(run: Run) -> None:
    def refuse() -> None:
        remedy = f"onesearch embed --run {run.folder} && onesearch quantize --run {run.folder}"
        raise UserError(
            "semantic IDs are not made, or not of these files and settings", place=run.folder, remedy=remedy
        )

    _each_step(run, refuse)


def _provenance(add: Path | None) -> dict[str, Any]:
    return {} if add is None else {"file": add.name, "sha256": checksum(add)}


def _rows_to_remove(table: SidTable, remove: Sequence[str]) -> NDArray[np.int64]:
    """Indices of the items to remove, ascending."""
    rejects = Rejects()
    frames = [pl.DataFrame(schema={"item_id": pl.String, FILE: pl.String, ROW: pl.UInt32})]
    for number, one in enumerate(remove, 1):
        if Path(one).is_file():
            frames.append(read_rows(Path(one), {"item_id": pl.String()}, rejects, required=("item_id",)))
        else:
            place = {FILE: pl.lit("--remove"), ROW: pl.lit(number, pl.UInt32)}
            frames.append(pl.DataFrame({"item_id": [one]}).with_columns(**place))
    asked = pl.concat(frames).with_columns(pl.col("item_id").str.strip_chars())
    asked = _known(asked, table)
    rejects.drop(asked, pl.col("item").is_null(), "item_id", "unknown item", "name an item of the catalogue, or a file")
    rejects.drop(asked, pl.col("removed") > 0, "item_id", "the item was removed before", "leave it out")
    rejects.drop(asked, ~pl.col("item").is_first_distinct(), "item_id", "duplicate item_id", "name it once")
    return np.sort(asked["item"].to_numpy().astype(np.int64))


def _rows_to_add(table: SidTable, add: Path | None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The items that are new, in the order of the file; and those that come back, with their index as `item`."""
    if add is None:
        empty = pl.DataFrame(schema=ITEMS)
        return empty, empty.with_columns(item=pl.lit(None, pl.Int64))
    rejects = Rejects()
    found = read_rows(add, ITEMS, rejects, required=REQUIRED["items"], exhaustive=True)
    if found.is_empty():
        raise UserError("the file has no rows", place=add, remedy="give an item a row")
    rows = _known(check_items(found, rejects), table)
    here = pl.col("removed") == 0
    remedy = "leave it out, or remove the item first"
    rejects.drop(rows, here, "item_id", "the item is in the catalogue already", remedy)
    new, back = rows.filter(pl.col("item").is_null()), rows.filter(pl.col("item").is_not_null())
    return new.select(*ITEMS), back.select(*ITEMS, "item")


def _known(rows: pl.DataFrame, table: SidTable) -> pl.DataFrame:
    """The rows with the columns `item` (index, null for an unknown one) and `removed` (version, null likewise)."""
    known = pl.DataFrame(
        {"item_id": table.item_ids, "item": np.arange(len(table.codes), dtype=np.int64), "removed": table.removed}
    )
    return rows.join(known, on="item_id", how="left", maintain_order="left")


def _write(
    run: Run,
    corpus: Corpus,
    table: SidTable,
    new: pl.DataFrame,
    back: pl.DataFrame,
    gone: NDArray[np.int64],
    provenance: dict[str, Any],
    stage: Path,
    progress: Progress | None,
) -> Report:
    """Write everything that changes into `stage`, and tell what that is."""
    version, old = table.version + 1, len(table.codes)
    items, views = corpus.items, run.folder / VIEWS
    vectors: NDArray[np.float32] = np.load(run.folder / "embeddings/vectors.npy", mmap_mode="r")
    if len(new) + len(back):
        items = _grown(items, new, back)
        _write_items(run.folder / "corpus", items, stage / "corpus")
        if (run.folder / "corpus" / SPELLING).exists():
            texts = item_texts(replace(corpus, items=pl.concat([new, back.select(*ITEMS)])))
            Spelling.load(run.folder / "corpus" / SPELLING).knowing(texts).save(stage / "corpus" / SPELLING)
        vectors = _embed(run, corpus, items, vectors, stage / "embeddings", progress)
        if run.settings.image_encoder is not None:
            known = encoded_pictures(corpus.items, run.settings, views)
            views = stage / VIEWS
            embed_pictures(items, run.settings, views, progress, lambda encoder: _Known(encoder, *known))
    quantized = vectors_of(run, corpus, items, table, vectors, views)

    learned = quantized.encode(np.arange(old, old + len(new)))
    codes, counts = _placed(table, learned)
    added = np.concatenate([table.added, np.full(len(new), version, np.int32)])
    removed = np.concatenate([table.removed, np.zeros(len(new), np.int32)])
    removed[back["item"].to_numpy()] = 0
    removed[gone] = version
    if not (removed == 0).any():
        raise UserError("nothing would be left on sale", place="--remove", remedy="keep an item, or add some")
    last = int(table.order.max(initial=-1)) + 1
    entry = {"version": version, "change": "assortment", "added": len(new), "returned": len(back), "removed": len(gone)}
    changed = SidTable(
        item_ids=pl.concat([table.item_ids, new["item_id"]]),
        codes=np.concatenate([table.codes, codes]),
        level_sizes=table.level_sizes,
        order=np.concatenate([table.order, np.arange(last, last + len(new), dtype=np.int32)]),
        added=added,
        removed=removed,
        history=(*table.history, {**entry, "moved": counts["moved"], **provenance}),
    )
    changed.save(stage / "sid")
    report = reported(changed, quantized, learned, counts, (len(new), len(back), len(gone)), of_searches(run))
    write_usage(run.folder / "sid/usage.json", changed, report, stage / "sid/usage.json")
    return report


def _grown(items: pl.DataFrame, new: pl.DataFrame, back: pl.DataFrame) -> pl.DataFrame:
    """The item table with new rows at its end, and the rows of those that come back as they are now."""
    at = np.arange(len(items), dtype=np.int64)
    kept = items.with_columns(item=pl.Series(at)).filter(~pl.col("item").is_in(back["item"].implode()))
    together = pl.concat([kept.select(*ITEMS, "item"), back]).sort("item").drop("item")
    return pl.concat([together, new])


def _write_items(folder: Path, items: pl.DataFrame, target: Path) -> None:
    """`items.parquet` and `corpus.json` of a corpus whose other tables stay as they are."""
    target.mkdir(parents=True)
    items.write_parquet(target / "items.parquet")
    tables = [(target if table == "items" else folder) / f"{table}.parquet" for table in TABLES]
    sums = "".join(checksum(path) for path in tables)
    info = {**read_json(folder / "corpus.json"), "items": len(items)}
    write_json(target / "corpus.json", {**info, "checksum": hashlib.sha256(sums.encode()).hexdigest()})


class _Known:
    """An encoder that has encoded some texts (or files of pictures) before: those keep their vectors, bit for bit.

    Args:
        texts: N of them.
        vectors: (N, D) theirs.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        self.name, self.dimension = encoder.name, encoder.dimension
        self._encoder, self._vectors = encoder, vectors
        self._rows = {text: row for row, text in enumerate(texts)}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        row = np.array([self._rows.get(text, -1) for text in texts], np.int64)
        result = np.empty((len(texts), self.dimension), np.float32)
        result[row >= 0] = self._vectors[row[row >= 0]]
        unknown = np.flatnonzero(row < 0).tolist()
        if unknown:
            result[unknown] = self._encoder.encode([texts[i] for i in unknown])
        return result


def _embed(
    run: Run,
    corpus: Corpus,
    items: pl.DataFrame,
    vectors: NDArray[np.float32],
    folder: Path,
    progress: Progress | None,
) -> NDArray[np.float32]:
    """(N + M, D) vectors of the grown catalogue, as the step `embed` would make them, written to `folder`."""
    texts, encoder = item_texts(corpus), load_text_encoder(run.settings.encoder)
    same = vectors.shape == (len(texts), encoder.dimension)
    if not (same and np.allclose(vectors[0], encoder.encode(texts[:1])[0], atol=1e-3)):
        raise UserError(
            "this encoder does not give the vectors that the run has",
            place=run.folder / "embeddings",
            value=run.settings.encoder,
            remedy="use the encoder of the run, or embed and quantize again",
        )
    grown = item_texts(replace(corpus, items=items))
    return embed_catalogue(grown, _Known(encoder, texts, vectors), folder, progress=progress)


def _placed(table: SidTable, learned: NDArray[np.int32]) -> tuple[NDArray[np.int32], dict[str, int]]:
    """(M, levels of the table) semantic IDs for learned codes, and how many were resolved in which way."""
    levels = learned.shape[1]
    known = len(table.codes)
    sequence = prefix_ids(np.concatenate([table.codes[:, :levels], learned]))[:, -1]
    fresh = ~np.isin(sequence[known:], sequence[:known])
    first = np.zeros(len(learned), bool)
    first[np.unique(sequence[known:], return_index=True)[1]] = True
    alone = fresh & first
    if levels == len(table.level_sizes):
        shared = int((~alone).sum())
        return learned, {"alone": int(alone.sum()), "next_rank": 0, "moved": 0, "shared": shared}
    codes, moved = place(table.codes, learned, table.level_sizes[-1])
    next_rank = int((~alone & ~moved).sum())
    return codes, {"alone": int(alone.sum()), "next_rank": next_rank, "moved": int(moved.sum()), "shared": 0}
