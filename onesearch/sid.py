"""The SID table: which semantic ID each item has, since when, and how codes are written as tokens.

The table is versioned. Version 1 is what codebooks were fitted on; every later change of the assortment is one version
more (`onesearch/assortment.py`). Rows are never moved and never deleted: an item that is gone keeps its row and its
semantic ID, flagged with the version in which it went, so that no other item is ever mistaken for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json, write_json
from onesearch.prefix import PrefixIndex

TABLE_FORMAT = 2
READABLE_FORMATS = (1, 2)
"""The first format knew no versions: such a table is read as version 1 of itself."""


def _unset() -> NDArray[np.int32]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class SidTable:
    """The semantic ID of every item.

    Attributes:
        item_ids: (N) the catalogue's ids, in the order of the corpus.
        codes: (N, L) int32.
        level_sizes: L numbers; codes of level l are below `level_sizes[l]`.
        order: (N,) int32 rank of each item within its semantic ID: where several items share one, retrieval returns
            them in this order (the table is built with the most popular first).
        added: (N,) int32 version in which each item came; by default that of the fit.
        removed: (N,) int32 version in which each item went, 0 for those on sale; by default none went.
        history: what each version changed, the oldest first; JSON values with at least `version` and `change`.
    """

    item_ids: pl.Series
    codes: NDArray[np.int32]
    level_sizes: tuple[int, ...]
    order: NDArray[np.int32]
    added: NDArray[np.int32] = field(default_factory=_unset)
    removed: NDArray[np.int32] = field(default_factory=_unset)
    history: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        total = len(self.item_ids)
        if self.codes.shape != (total, len(self.level_sizes)):
            raise ValueError(f"codes {self.codes.shape} do not fit {total} items, {self.level_sizes}")
        if len(self.codes) and (self.codes.min() < 0 or (self.codes.max(0) >= np.array(self.level_sizes)).any()):
            raise ValueError(f"codes outside the level sizes {self.level_sizes}")
        if not self.history:
            object.__setattr__(self, "history", ({"version": 1, "change": "fit", "items": total},))
        for name, default in (("added", self.version), ("removed", 0)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(total, default, np.int32))
            if getattr(self, name).shape != (total,):
                raise ValueError(f"{name} {getattr(self, name).shape} does not fit {total} items")

    @property
    def version(self) -> int:
        """The version of the table; 1 is the first."""
        return int(self.history[-1]["version"])

    @property
    def fit_version(self) -> int:
        """The version whose items the codebooks were fitted on."""
        return max(int(one["version"]) for one in self.history if one["change"] == "fit")

    @property
    def on_sale(self) -> NDArray[np.int64]:
        """Indices of the items that were not removed, ascending."""
        return np.flatnonzero(self.removed == 0)

    @property
    def fitted(self) -> NDArray[np.int64]:
        """Indices of the items that the codebooks were fitted on, ascending: what was on sale at `fit_version`."""
        gone = (self.removed > 0) & (self.removed < self.fit_version)
        return np.flatnonzero((self.added == self.fit_version) & ~gone)

    def removed_of(self, item_ids: pl.Series) -> NDArray[np.int32]:
        """(M,) the versions in which these items went, 0 for those on sale and for unknown ones."""
        known = pl.DataFrame({"item_id": self.item_ids, "removed": self.removed})
        found = item_ids.alias("item_id").to_frame().join(known, on="item_id", how="left", maintain_order="left")
        return found["removed"].fill_null(0).to_numpy().astype(np.int32)

    def after(self, folder: Path) -> SidTable:
        """This table of new codebooks as the next version of the one in `folder`, where there is one.

        Whatever was removed stays removed, and the history goes on.
        """
        if not (folder / "table.json").exists():
            return self
        last = SidTable.load(folder)
        version = last.version + 1
        return replace(
            self,
            added=np.full(len(self.codes), version, np.int32),
            removed=last.removed_of(self.item_ids),
            history=(*last.history, {"version": version, "change": "fit", "items": len(self.codes)}),
        )

    def index(self) -> PrefixIndex:
        """The prefix index over all items, the removed ones too: the log still holds them, and training reads it."""
        return PrefixIndex.build(self.codes, self.order)

    def tokens(self) -> list[str]:
        """The names of all SID tokens, level by level: `<a_0>`, `<a_1>`, ..., `<b_0>`, ..."""
        return [sid_token(level, code) for level, size in enumerate(self.level_sizes) for code in range(size)]

    def text(self, item: int) -> str:
        """An item's semantic ID as text, such as `<a_12><b_7><c_0>`."""
        return "".join(sid_token(level, int(code)) for level, code in enumerate(self.codes[item]))

    def save(self, folder: Path) -> None:
        """Write `table.parquet` (item_id, sid as text, added, removed; for people), `codes.safetensors` and
        `table.json`."""
        texts = [self.text(item) for item in range(len(self.codes))]
        shown = pl.DataFrame({"item_id": self.item_ids, "sid": texts, "added": self.added, "removed": self.removed})
        with atomic_path(folder / "table.parquet") as path:
            shown.write_parquet(path)
        arrays = {"codes": self.codes, "order": self.order, "added": self.added, "removed": self.removed}
        with atomic_path(folder / "codes.safetensors") as path:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
        about = {"version": TABLE_FORMAT, "level_sizes": list(self.level_sizes), "history": list(self.history)}
        write_json(folder / "table.json", about)

    @classmethod
    def load(cls, folder: Path) -> SidTable:
        """Read what `save` wrote; a missing, half-written or other-version table is a `UserError`."""
        about = read_json(folder / "table.json")
        remedy = "run `onesearch quantize` again"
        if about.get("version") not in READABLE_FORMATS:
            raise UserError("SID table of another version", place=folder, value=about.get("version"), remedy=remedy)
        arrays = load_file(folder / "codes.safetensors")
        item_ids = pl.read_parquet(folder / "table.parquet")["item_id"]
        if len(item_ids) != len(arrays["codes"]):
            raise UserError("half-written SID table", place=folder, value=len(item_ids), remedy=remedy)
        since = {name: arrays[name] for name in ("added", "removed") if name in arrays}
        history = tuple(about.get("history", ()))
        return cls(item_ids, arrays["codes"], tuple(about["level_sizes"]), arrays["order"], **since, history=history)


def sid_token(level: int, code: int) -> str:
    """The token of a code: level 0 is `a`.

    >>> sid_token(1, 7)
    '<b_7>'
    """
    return f"<{chr(ord('a') + level)}_{code}>"
