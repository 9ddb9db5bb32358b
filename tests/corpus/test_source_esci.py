"""The Shopping Queries Data Set: graded relevance per locale, from two files or the hub's joined ones."""

from pathlib import Path

import polars as pl
import pytest

from onesearch.corpus.sources import prepare
from onesearch.errors import UserError

FIELDS = (
    "product_locale",
    "product_id",
    "product_title",
    "product_description",
    "product_bullet_point",
    "product_brand",
)
PRODUCTS = pl.DataFrame(
    [
        ("us", "B1", "Fan", "Quiet.", "Cheap.", "Acme", "White"),
        ("es", "B1", "Ventilador", None, None, None, None),
        ("us", "B2", "Lamp", "", "Bright.", None, None),
    ],
    schema=(*FIELDS, "product_color"),
    orient="row",
)
EXAMPLES = pl.DataFrame(
    [("fan", "us", "B1", "E"), ("fan", "us", "B2", "I"), ("ventilador", "es", "B1", "S"), ("lamp", "us", "B1", "C")],
    schema=("query", "product_locale", "product_id", "esci_label"),
    orient="row",
).with_row_index("example_id")


def test_esci(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    EXAMPLES.write_parquet(folder / "shopping_queries_dataset_examples.parquet")
    with pytest.raises(UserError, match=r"shopping_queries_dataset_products.parquet: no such file"):
        prepare("esci", tmp_path / "corpus", path=folder)
    PRODUCTS.write_parquet(folder / "shopping_queries_dataset_products.parquet")
    corpus = prepare("esci", tmp_path / "corpus", path=folder)
    assert corpus.items["item_id"].to_list() == ["us:B1", "es:B1", "us:B2"]
    assert corpus.items["description"].to_list() == ["Quiet.\nCheap.", None, "Bright."]
    assert {"name": "color", "value": "White"} in corpus.items["attributes"][0].to_list()
    assert corpus.relevance.rows() == [
        ("fan", "us:B1", 3.0),
        ("fan", "us:B2", 0.0),
        ("ventilador", "es:B1", 2.0),
        ("lamp", "us:B1", 1.0),
    ]
    assert (len(corpus.users), len(corpus.user), corpus.has_clock) == (0, 0, False)
    EXAMPLES.with_columns(esci_label=pl.lit("X")).write_parquet(folder / "shopping_queries_dataset_examples.parquet")
    with pytest.raises(UserError, match=r"row 1 column esci_label: unknown label: 'X'"):
        prepare("esci", tmp_path / "corpus", path=folder)


def test_esci_as_the_hub_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples and products joined, labels spelt out; the download itself needs a network and is not tried here."""
    names = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
    joined = EXAMPLES.join(PRODUCTS, on=["product_id", "product_locale"])
    joined = joined.with_columns(pl.col("esci_label").replace(names)).sort("example_id")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    joined.write_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    monkeypatch.setattr("onesearch.corpus.sources.esci.fetch", lambda repository, patterns: tmp_path / "hub")
    corpus = prepare("esci", tmp_path / "corpus")
    assert corpus.items["item_id"].to_list() == ["us:B1", "us:B2", "es:B1"]
    assert corpus.relevance["grade"].to_list() == [3.0, 0.0, 2.0, 1.0]
