"""New codebooks for an assortment that has changed since they were fitted: `onesearch quantize --refit`.

Adding and removing items leaves codebooks as they are, and says when they should be fitted anew (`onesearch/drift.py`).
That moves semantic IDs, so a generator that was trained on the old ones would answer with wrong items: both are put
aside, together, in `versions/VERSION` of the run. Moved back to `sid` and `models` they are in force again, as long as
the catalogue is the same. Alignments (`models/align`) are of texts, and stay.

Codebooks are fitted on the items that are on sale; those that were removed get codes too, since the log holds them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from onesearch.errors import UserError
from onesearch.files import atomic_path
from onesearch.run import Run
from onesearch.sid import SidTable

VERSIONS: Final = "versions"
"""Folder of a run with the semantic IDs and generators of earlier codebooks, one folder a version of the table."""


@dataclass(frozen=True)
class Refit:
    """What a refit did.

    Attributes:
        version: of the new table.
        items: that the codebooks were fitted on.
        moved: items on sale whose semantic ID is another one now.
        before: where the old semantic IDs are.
        put_aside: generators that were trained on them, which are there too.
        notes: what is to be done next.
    """

    version: int
    items: int
    moved: int
    before: str
    put_aside: list[str]
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """Names and values for the terminal."""
        return {name: "; ".join(one) if isinstance(one, list) else one for name, one in asdict(self).items() if one}


def refit(run: Run, quantize: Callable[[], object]) -> Refit:
    """Fit codebooks anew on what is on sale. Call it with the run's lock.

    Args:
        quantize: does the step `quantize`, done before or not.

    Raises:
        UserError: the run has no semantic IDs, or `quantize` raises it. The run is as it was.
    """
    folder = run.folder / "sid"
    if not (folder / "table.json").exists():
        remedy = f"run `onesearch quantize --run {run.folder}`"
        raise UserError("no semantic IDs here yet", place=folder, remedy=remedy)
    old = SidTable.load(folder)
    before = run.folder / VERSIONS / str(old.version)
    with atomic_path(before / "sid") as copy:
        shutil.copytree(folder, copy)
    put_aside = [path.name for path in sorted((run.folder / "models").glob("*")) if path.name != "align"]
    _move(put_aside, run.folder / "models", before / "models")
    try:
        quantize()
    except BaseException:
        _move(put_aside, before / "models", run.folder / "models")
        with atomic_path(folder) as restored:
            shutil.copytree(before / "sid", restored)
        shutil.rmtree(before)
        raise
    new = SidTable.load(folder)
    notes = []
    if put_aside:
        trained = f"the generator knows the old semantic IDs: run `onesearch train --run {run.folder}`"
        notes += [trained, f"until then, and to go back, {before} holds what `sid` and `models` were"]
    return Refit(new.version, len(new.on_sale), _moved(old, new), str(before), put_aside, notes)


def _move(names: list[str], source: Path, target: Path) -> None:
    for name in names:
        target.mkdir(parents=True, exist_ok=True)
        if (target / name).exists():
            shutil.rmtree(target / name)
        (source / name).rename(target / name)


def _moved(old: SidTable, new: SidTable) -> int:
    """How many items on sale have another semantic ID now; levels that only one table has make it another one."""
    tables = [
        pl.DataFrame({"item_id": table.item_ids, "sid": [table.text(item) for item in range(len(table.codes))]})
        for table in (old, new)
    ]
    both = tables[1][new.on_sale].join(tables[0], on="item_id", suffix="_before")
    return both.filter(pl.col("sid") != pl.col("sid_before")).height
