"""The SID table: which semantic ID each item has, and how codes are written as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json, write_json
from onesearch.prefix import PrefixIndex

TABLE_VERSION = 1


@dataclass(frozen=True)
class SidTable:
    """The semantic ID of every item.

    Attributes:
        item_ids: (N) the catalogue's ids, in the order of the corpus.
        codes: (N, L) int32.
        level_sizes: L numbers; codes of level l are below `level_sizes[l]`.
        order: (N,) int32 rank of each item within its semantic ID: where several items share one, retrieval returns
            them in this order (the table is built with the most popular first).
    """

    item_ids: pl.Series
    codes: NDArray[np.int32]
    level_sizes: tuple[int, ...]
    order: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.codes.shape != (len(self.item_ids), len(self.level_sizes)):
            raise ValueError(f"codes {self.codes.shape} do not fit {len(self.item_ids)} items, {self.level_sizes}")
        if len(self.codes) and (self.codes.min() < 0 or (self.codes.max(0) >= np.array(self.level_sizes)).any()):
            raise ValueError(f"codes outside the level sizes {self.level_sizes}")

    def index(self) -> PrefixIndex:
        """The prefix index over all items."""
        return PrefixIndex.build(self.codes, self.order)

    def tokens(self) -> list[str]:
        """The names of all SID tokens, level by level: `<a_0>`, `<a_1>`, ..., `<b_0>`, ..."""
        return [sid_token(level, code) for level, size in enumerate(self.level_sizes) for code in range(size)]

    def text(self, item: int) -> str:
        """An item's semantic ID as text, such as `<a_12><b_7><c_0>`."""
        return "".join(sid_token(level, int(code)) for level, code in enumerate(self.codes[item]))

    def save(self, folder: Path) -> None:
        """Write `table.parquet` (item_id, sid as text, for people), `codes.safetensors` and `table.json`."""
        texts = [self.text(item) for item in range(len(self.codes))]
        with atomic_path(folder / "table.parquet") as path:
            pl.DataFrame({"item_id": self.item_ids, "sid": texts}).write_parquet(path)
        with atomic_path(folder / "codes.safetensors") as path:
            save_file({"codes": np.ascontiguousarray(self.codes), "order": self.order}, path)
        write_json(folder / "table.json", {"version": TABLE_VERSION, "level_sizes": list(self.level_sizes)})

    @classmethod
    def load(cls, folder: Path) -> SidTable:
        """Read what `save` wrote; a missing or other-version table is a `UserError`."""
        about = read_json(folder / "table.json")
        if about.get("version") != TABLE_VERSION:
            remedy = "run `onesearch quantize` again"
            raise UserError("SID table of another version", place=folder, value=about.get("version"), remedy=remedy)
        arrays = load_file(folder / "codes.safetensors")
        item_ids = pl.read_parquet(folder / "table.parquet")["item_id"]
        return cls(item_ids, arrays["codes"], tuple(about["level_sizes"]), arrays["order"])


def sid_token(level: int, code: int) -> str:
    """The token of a code: level 0 is `a`.

    >>> sid_token(1, 7)
    '<b_7>'
    """
    return f"<{chr(ord('a') + level)}_{code}>"
