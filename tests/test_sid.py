"""The SID table on disk and as tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from onesearch.errors import UserError
from onesearch.files import read_json, write_json
from onesearch.sid import SidTable


def made() -> SidTable:
    codes = np.array([[1, 0, 2], [0, 3, 0], [1, 0, 2]], np.int32)
    return SidTable(pl.Series("item_id", ["x", "y", "z"]), codes, (2, 4, 3), np.array([1, 0, 0], np.int32))


def test_a_saved_table_is_the_same_and_readable_by_people(tmp_path: Path) -> None:
    table = made()
    table.save(tmp_path / "sid")
    loaded = SidTable.load(tmp_path / "sid")
    assert loaded.item_ids.to_list() == ["x", "y", "z"] and loaded.level_sizes == (2, 4, 3)
    np.testing.assert_array_equal(loaded.codes, table.codes)
    np.testing.assert_array_equal(loaded.order, table.order)
    assert loaded.codes.dtype == loaded.order.dtype == np.int32
    shown = pl.read_parquet(tmp_path / "sid/table.parquet")
    sids = ("<a_1><b_0><c_2>", "<a_0><b_3><c_0>", "<a_1><b_0><c_2>")
    assert shown.rows() == [(name, sid, 1, 0) for name, sid in zip("xyz", sids, strict=True)]
    assert loaded.version == loaded.fit_version == 1 and loaded.on_sale.tolist() == [0, 1, 2]


def test_items_of_one_semantic_id_come_in_the_order_of_the_table() -> None:
    assert made().index().items.tolist() == [1, 2, 0]


def test_tokens_name_every_code_of_every_level_once() -> None:
    tokens = made().tokens()
    assert tokens == ["<a_0>", "<a_1>", "<b_0>", "<b_1>", "<b_2>", "<b_3>", "<c_0>", "<c_1>", "<c_2>"]


def test_a_table_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    made().save(tmp_path)
    write_json(tmp_path / "table.json", {**read_json(tmp_path / "table.json"), "version": 99})
    with pytest.raises(UserError, match=r"another version: 99 \(run `onesearch quantize` again\)"):
        SidTable.load(tmp_path)


def test_a_table_of_the_first_format_is_version_1_of_itself(tmp_path: Path) -> None:
    table = made()
    table.save(tmp_path)
    save_file({"codes": table.codes, "order": table.order}, tmp_path / "codes.safetensors")
    write_json(tmp_path / "table.json", {"version": 1, "level_sizes": [2, 4, 3]})
    loaded = SidTable.load(tmp_path)
    assert loaded.version == 1 and loaded.added.tolist() == [1, 1, 1] and loaded.removed.tolist() == [0, 0, 0]


def test_a_refit_is_the_next_version_and_brings_nobody_back(tmp_path: Path) -> None:
    history = ({"version": 1, "change": "fit", "items": 3}, {"version": 2, "change": "assortment", "removed": 1})
    replace(made(), removed=np.array([0, 2, 0], np.int32), history=history).save(tmp_path)
    refitted = made().after(tmp_path)
    assert refitted.version == refitted.fit_version == 3 and refitted.removed.tolist() == [0, 2, 0]
    assert refitted.added.tolist() == [3, 3, 3] and refitted.history[:2] == history
    assert made().after(tmp_path / "none").version == 1


def test_a_half_written_table_is_told(tmp_path: Path) -> None:
    made().save(tmp_path)
    pl.read_parquet(tmp_path / "table.parquet").head(2).write_parquet(tmp_path / "table.parquet")
    with pytest.raises(UserError, match="half-written SID table"):
        SidTable.load(tmp_path)


def test_a_missing_table_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        SidTable.load(tmp_path)


@pytest.mark.parametrize(
    ("codes", "sizes"),
    [([[0], [1]], (2,)), ([[0], [1], [2]], (2,)), ([[0], [-1], [1]], (2,)), ([[0, 0], [0, 0], [0, 0]], (2,))],
)
def test_codes_must_fit_the_items_and_the_levels(codes: list[list[int]], sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError):
        SidTable(pl.Series(["x", "y", "z"]), np.array(codes, np.int32), sizes, np.zeros(3, np.int32))
