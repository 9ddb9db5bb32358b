"""What a change of the assortment did, how the table stands after it, and whether new codebooks are due.

`onesearch/assortment.py` makes the change; how well the codebooks still fit is `onesearch/drift.py`'s to say.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onesearch.drift import MOST_ERROR, Drift, Vectors, measure_drift, refit
from onesearch.files import read_json, write_json
from onesearch.placement import full_sequences
from onesearch.sid import SidTable
from quantizers.metrics import prefix_ids


@dataclass(frozen=True)
class Report:
    """What one change did, and how the table stands after it.

    Attributes:
        version: of the table.
        on_sale: items that searches may return.
        added, returned, removed: items that this change added, brought back and removed.
        alone: added items whose learned codes nobody had.
        next_rank: added items that took the next free rank below learned codes that others have.
        moved: added items that took another last learned code, theirs being full.
        shared: added items that share a semantic ID, and come last in it (tables without a rank level).
        held_by_removed: semantic IDs that only removed items have.
        full, sequences: sequences of learned codes without a free rank, and all (None without a rank level).
        now, since_fit: drift of the items of this change, and of all that were added since the fit.
        refit_due, reasons: whether the codebooks should be fitted anew, and why or why not.
        notes: what else should be known.
    """

    version: int
    on_sale: int
    added: int
    returned: int
    removed: int
    alone: int
    next_rank: int
    moved: int
    shared: int
    held_by_removed: int
    full: int | None
    sequences: int | None
    now: Drift | None
    since_fit: Drift | None
    refit_due: bool
    reasons: list[str]
    notes: list[str]

    def facts(self) -> dict[str, Any]:
        """Names and values for the terminal."""
        flat = {name: value for name, value in asdict(self).items() if value is not None and value != []}
        for name in ("now", "since_fit"):
            if name in flat:
                drift = flat.pop(name)
                spelt = [f"{u:.3f} ({f:.3f})" for u, f in zip(drift["unseen"], drift["fitted_unseen"], strict=True)]
                flat[f"error of new items, {name}"] = drift["error"]
                flat["error of fitted items"] = drift["fitted_error"]
                flat[f"ratio, {name} (refit above {MOST_ERROR})"] = drift["ratio"]
                flat[f"below unseen prefixes, {name} (fitted items)"] = "  ".join(spelt)
        for name in ("refit_due", "reasons", "notes"):
            if name in flat:
                value = flat.pop(name)
                flat[name] = "; ".join(value) if isinstance(value, list) else "yes" if value else "no"
        return flat


def reported(
    table: SidTable,
    vectors: Vectors,
    learned: NDArray[np.int32],
    counts: dict[str, int],
    changed: tuple[int, int, int],
    of_searches: bool,
) -> Report:
    """What a change did.

    Args:
        table: as the change leaves it. vectors: of its items. learned: (M, L) learned codes of the new items.
        counts: how many of them were placed in which way. changed: items added, returned and removed.
        of_searches: whether semantic IDs are of the searches that led to items.
    """
    added, returned, removed = changed
    levels = learned.shape[1]
    since = np.flatnonzero(table.added > table.fit_version)
    ids = prefix_ids(table.codes)[:, -1]
    held = np.setdiff1d(ids[table.removed > 0], ids[table.removed == 0])
    full = sequences = None
    if len(table.level_sizes) > levels:
        full, sequences = full_sequences(table.codes, table.level_sizes[-1])
    now = measure_drift(table, vectors, since[len(since) - added :])
    since_fit = measure_drift(table, vectors, since)
    moved = sum(int(one.get("moved", 0)) for one in table.history if int(one["version"]) > table.fit_version)
    due, reasons = refit(since_fit, moved)
    notes = []
    if added and of_searches:
        notes.append("new items have no searches that led to them: their codes are those of their text alone")
    if added and vectors.bought_share:
        notes.append("new items have no co-purchases: that part of their vectors is zero")
    if due:
        notes.append("`onesearch quantize --refit` fits new codebooks: semantic IDs move, so train again after it")
    if returned:
        notes.append("returned items have their old semantic IDs")
    return Report(
        version=table.version,
        on_sale=len(table.on_sale),
        added=added,
        returned=returned,
        removed=removed,
        **counts,
        held_by_removed=len(held),
        full=full,
        sequences=sequences,
        now=now,
        since_fit=since_fit,
        refit_due=due,
        reasons=reasons,
        notes=notes,
    )


def write_usage(source: Path, table: SidTable, report: Report, target: Path) -> None:
    """`usage.json` of the changed table; what it says of the fit stays."""
    about = read_json(source)
    usage = [
        np.bincount(table.codes[:, level], minlength=size).tolist() for level, size in enumerate(table.level_sizes)
    ]
    metrics = {
        **about["metrics"],
        "items": len(table.codes),
        "semantic_ids": len(np.unique(table.codes, axis=0)),
        "table_version": table.version,
        "items_on_sale": report.on_sale,
        "semantic_ids_of_removed_items": report.held_by_removed,
        "refit_due": report.refit_due,
    }
    write_json(target, {**about, "usage": usage, "metrics": metrics})
