"""Filters: what an expression means is what Python says, what it may not reach it does not, and mistakes are named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onesearch.corpus.schema import ITEMS
from onesearch.errors import UserError
from onesearch.where import EVERYTHING, FUNCTIONS, KEYWORDS, MAX_CHARACTERS, Filter, ItemFilters, item_ids

ROWS: list[dict[str, Any]] = [
    {
        "item_id": "1",
        "title": "Whole milk",
        "brand": "Private",
        "categories": ["GROCERY", "DAIRY", "MILK"],
        "price": 1.5,
        "attributes": [{"name": "size", "value": "1 GA"}, {"name": "net weight", "value": "3.8 kg"}],
    },
    {
        "item_id": "2",
        "title": "Cheddar",
        "brand": "O'Hara",
        "categories": ["GROCERY", "DAIRY", "CHEESE"],
        "price": 6.0,
        "attributes": [{"name": "size", "value": "8 OZ"}, {"name": "size", "value": "1 GA"}],
    },
    {"item_id": "3", "title": "100% juice", "brand": None, "categories": ["GROCERY"], "price": None, "attributes": []},
    {"item_id": "4", "title": "Dog food", "brand": "private", "categories": None, "price": 5.0, "attributes": None},
]


@pytest.fixture(scope="module")
def filters() -> ItemFilters:
    return ItemFilters(pl.DataFrame(ROWS, schema=ITEMS))


def found(filters: ItemFilters, where: str | None = None, **lists: Any) -> str:
    """The ids that match, one after the other."""
    asked = Filter(where, **lists)
    filters.check(asked)
    (mask,) = filters.masks([asked])
    return "".join(filters.items["item_id"].filter(pl.Series(mask.numpy())))


@pytest.mark.parametrize(
    "where, ids",
    [
        ("price < 5 and brand = 'Private'", "1"),
        ("price<=5 OR brand='O''Hara'", "124"),
        ("NOT price < 5", "24"),  # null counts as not matching, and so does its contrary
        ("price is null", "3"),
        ("price between 2 and 6", "24"),
        ("price in (1.5, 5)", "14"),
        ("brand not in ('Private')", "24"),
        ("lower(brand) = 'private'", "14"),
        ("coalesce(price, 0) < 2", "13"),
        ("price * 2 - 1 > 9", "2"),
        ("array_contains(categories, 'DAIRY')", "12"),
        ("not array_contains(categories, 'DAIRY')", "3"),
        ("categories[1] = 'GROCERY' and categories[-1] <> 'CHEESE'", "13"),
        ("array_length(categories) > 1", "12"),
        ("title like '%milk' or title ilike 'CHEDDAR'", "12"),
        ("starts_with(title, '100%')", "3"),
        ("title like '%%%'", "1234"),
        ("attributes.size = '1 GA'", "1"),  # of two sizes the first counts
        ('attributes."net weight" is null', "234"),
        ("length(attributes.size) = 4 and (price < 2) is true", "1"),
        ('"price" > 5', "2"),
        ("item_id = '4'", "4"),
        ("true", "1234"),
        ("brand = null", ""),
        ("(price < 5) = (brand = 'Private')", "124"),
    ],
)
def test_the_items_that_an_expression_holds_for(filters: ItemFilters, where: str, ids: str) -> None:
    assert found(filters, where) == ids


def test_lists_and_expression_hold_together(filters: ItemFilters) -> None:
    assert found(filters) == "1234"
    assert found(filters, allow=("4", "2", "3")) == "234"
    assert found(filters, allow=("4", "2", "3"), deny=("2", "1")) == "34"
    assert found(filters, "price > 1", allow=("4", "2", "3"), deny=("2",)) == "4"
    assert found(filters, allow=()) == ""
    several = [EVERYTHING, Filter("price > 5"), Filter(deny=("1",)), Filter("price > 5", deny=("2",))]
    assert filters.masks(several).sum(1).tolist() == [4, 1, 3, 0], "each its own; kept masks are not written into"
    assert filters.masks(several).sum(1).tolist() == [4, 1, 3, 0]


COLUMNS = "item_id, title, description, brand, categories, attributes, price, images, created_at"


@pytest.mark.parametrize(
    "where, message",
    [
        ("prize < 5", "here: unknown column in 'where': 'prize' (did you mean 'price'?)"),
        ("stock > 1", f"unknown column in 'where': 'stock' (texts are in 'single quotes'; columns: {COLUMNS})"),
        ('brand = "Private"', "unknown column in 'where': 'Private' (texts are in 'single quotes'"),
        ("attributes.colour = 'red'", "unknown attribute in 'where': 'colour' (attributes: net weight, size)"),
        ("attributes is null", "(write attributes.NAME"),
        ("brand.name = 'a'", "a dot out of place"),
        ("price < 'abc'", "wrong type in 'where', cannot compare string with numeric"),
        ("brand = 3", "(brand is a text)"),
        ("categories = 'MILK'", "(categories is a list of texts)"),
        ("array_contains(brand, 'x')", "(brand is a text)"),
        ("price", "a number is not true or false: 'price' (price is a number)"),
        ("not price", "a number is not true or false"),
        ("price < 3 and brand", "a text is not true or false"),
        ("1 < price < 3", "true or false beside a number"),
        ("price = true", "true or false beside a number"),
        ("", "cannot read 'where': '' (write it like"),
        ("price <", "cannot read 'where'"),
        ("price < 5 brand", "cannot read 'where'"),
        ("price < 5) or (true", "cannot read 'where'"),
        ("(" * 900, "cannot read 'where'"),
        ("brand = 'it", 'unexpected "\'it" in'),
        ("price < 5 -- all", "unexpected '--' in"),
        ("price < 5; true", "unexpected ';' in"),
        ("price" + " + 1" * 400 + " < 3", "more than 64 values and operators in one comparison"),
        ("price < 1 or " * 200 + "true", "'where' is too long"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(filters: ItemFilters, where: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        filters.check(Filter(where), place="here")
    assert str(error.value).startswith("here: ") and message in str(error.value)


@pytest.mark.parametrize(
    "where",
    [
        "price < (select max(price) from self)",
        "exists(select * from read_csv('{file}'))",
        "read_csv('{file}') = 1",
        "price in (select price from read_csv('{file}'))",
        "sum(price) over (partition by brand) > 3",
        "avg(price) > 3",
        "unnest(categories) = 'MILK'",
        "columns('price') > 3",
        "price < interval '1 day'",
        "cast(title as int) > 1",
        "title::int > 1",
        "title ~ '(a+)+$'",
        "lpad(title, 1000000000, 'x') = 'x'",
        "case when price < 3 then true else false end",
        "price < 5 as price",
        "attributes.\"*\" = 'a'",
        '"^p.*$" < 3',
    ],
)
def test_an_expression_reaches_nothing_but_the_columns_of_its_row(
    filters: ItemFilters, tmp_path: Path, where: str
) -> None:
    (tmp_path / "secret.csv").write_text("price\n1.5\n")
    with pytest.raises(UserError, match=r"^(unknown|unexpected) "):
        filters.check(Filter(where.replace("{file}", str(tmp_path / "secret.csv"))))


def test_an_unknown_item_in_a_list_is_named(filters: ItemFilters) -> None:
    with pytest.raises(UserError, match="here: unknown item in 'allow': '9'"):
        filters.check(Filter(allow=("1", "9")), place="here")
    with pytest.raises(UserError, match="unknown item in 'deny': 'x'"):
        filters.check(Filter(deny=("x",)))


def test_an_expression_is_worked_out_once(filters: ItemFilters, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = ItemFilters(filters.items)
    parsed: list[str] = []
    parse: Callable[[str], pl.Expr] = pl.sql_expr  # type: ignore[assignment]
    monkeypatch.setattr(pl, "sql_expr", lambda text: (parsed.append(text), parse(text))[1])
    for _ in range(100):
        fresh.check(Filter("price < 5"))
        fresh.masks([Filter("price < 5", deny=("1",)), Filter("price < 5")])
    assert parsed.count("price < 5") == 1


def test_ids_are_given_one_by_one_or_as_files(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text('{"item_id": "2"}\n{"item_id": " 3 "}\n{"item_id": "2"}\n')
    assert item_ids(["1", str(path), "3"]) == ("1", "2", "3")
    path.write_text('{"id": "2"}\n')
    with pytest.raises(UserError, match="missing column: 'item_id'"):
        item_ids([str(path)])
    assert item_ids([]) == ()


Row = dict[str, Any]
Predicate = tuple[str, Callable[[Row], bool | None]]


def compared(column: str, value: Any, sign: str) -> Predicate:
    text = "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)
    compare: dict[str, Callable[[Any], bool]] = {
        "<": lambda one: one < value,
        ">=": lambda one: one >= value,
        "=": lambda one: one == value,
        "<>": lambda one: one != value,
    }
    return f"{column} {sign} {text}", lambda row: None if row[column] is None else compare[sign](row[column])


def both(first: Predicate, second: Predicate) -> Predicate:
    def holds(row: Row) -> bool | None:
        values = {first[1](row), second[1](row)}
        return False if False in values else None if None in values else True

    return f"({first[0]} and {second[0]})", holds


def contrary(one: Predicate) -> Predicate:
    def holds(row: Row) -> bool | None:
        value = one[1](row)
        return None if value is None else not value

    return f"not ({one[0]})", holds


def either(first: Predicate, second: Predicate) -> Predicate:
    return f"({first[0]} or {second[0]})", contrary(both(contrary(first), contrary(second)))[1]


SIGNS = st.sampled_from(["<", ">=", "=", "<>"])
BRANDS = ["Private", "private", "O'Hara", "", "naïve \\"]
LEAVES = st.one_of(
    st.builds(compared, st.just("price"), st.sampled_from([-1, 0, 1.5, 5, 6.25]), SIGNS),
    st.builds(compared, st.just("brand"), st.sampled_from(BRANDS), SIGNS),
)
PREDICATES = st.recursive(
    LEAVES, lambda one: st.one_of(st.builds(both, one, one), st.builds(either, one, one), st.builds(contrary, one))
)


@settings(max_examples=60, deadline=None)
@given(
    PREDICATES,
    st.lists(
        st.fixed_dictionaries(
            {
                "price": st.none() | st.sampled_from([-1.0, 0.0, 1.5, 5.0, 7.0]),
                "brand": st.none() | st.sampled_from(BRANDS),
            }
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_logic_is_that_of_three_values(predicate: Predicate, rows: list[Row]) -> None:
    where, holds = predicate
    items = pl.DataFrame([{"item_id": str(n), **row} for n, row in enumerate(rows)], schema=ITEMS)
    catalogue = ItemFilters(items)
    if len(where) > MAX_CHARACTERS:
        return
    assert catalogue.masks([Filter(where)])[0].tolist() == [holds(row) is True for row in rows]


PIECES = st.sampled_from(
    [
        *KEYWORDS,
        *FUNCTIONS,
        *ITEMS,
        "attributes.size",
        "(",
        ")",
        ",",
        "=",
        "<",
        "-",
        "[1]",
        "'a'",
        "3",
        ".5",
        "1e9",
        '"',
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES, max_size=9).map(" ".join) | st.text(max_size=12))
def test_any_text_is_a_filter_or_a_mistake_told(where: str) -> None:
    catalogue = ItemFilters(pl.DataFrame(ROWS, schema=ITEMS))
    try:
        catalogue.check(Filter(where))
    except UserError:
        return
    assert catalogue.masks([Filter(where)]).shape == (1, len(ROWS))
