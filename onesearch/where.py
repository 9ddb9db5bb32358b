"""Which items a request may be answered with: an expression over the catalogue's columns, and lists of item ids.

Expressions are those of Polars' SQL, which also knows files, sub-queries, windows and casts. None of these reaches it:
every word of an expression has to be a column, or a word of the small language of `KEYWORDS` and `FUNCTIONS`. And as
Polars compares numbers with truth values without complaint, `1 < price < 3` too, operands are looked at before.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Final

import polars as pl
import torch
from torch import Tensor

from onesearch.allowed import item_mask
from onesearch.corpus.rows import read_rows
from onesearch.corpus.tables import Rejects
from onesearch.errors import UserError

MAX_CHARACTERS: Final = 2_000
MAX_PARTS: Final = 64
"""Columns, values and operators in one comparison: the types of each are looked at."""

CACHE_BYTES: Final = 2**27
"""Masks of expressions that are kept, since many requests have the same few."""

KEYWORDS: Final = ("and", "or", "not", "in", "between", "like", "ilike", "is", "null", "true", "false")
FUNCTIONS: Final = (
    "array_contains",
    "array_length",
    "starts_with",
    "ends_with",
    "lower",
    "upper",
    "length",
    "coalesce",
)
ATTRIBUTES: Final = "attributes"
EXAMPLE: Final = "write it like \"price < 5 and brand = 'Private'\""

TOKEN = re.compile(
    r"""\s+
    | (?P<text> '(?:[^']|'')*' )
    | (?P<name> "(?:[^"]|"")+" | [^\W\d]\w* )
    | (?P<number> (?:\d+\.?\d*|\.\d+) (?:e[+-]?\d+)? (?![\w.]) )
    | (?P<place> \[\s*-?\d+\s*\] )
    | (?P<sign> <= | >= | <> | != | == | (?!--|/\*) [-=<>+*/%(),.] )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Filter:
    """What a request asks of its items; by default nothing.

    Attributes:
        where: an expression such as `price < 5 and array_contains(categories, 'SOFT DRINKS')`. An item for which it is
            null, as one without a price here, does not match.
        allow: the only item ids that may come out; None for all, and with no ids none may.
        deny: item ids that may not, even if allowed.
    """

    where: str | None = None
    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


EVERYTHING: Final = Filter()


class ItemFilters:
    """Turns filters into masks over the N items of one catalogue."""

    def __init__(self, items: pl.DataFrame) -> None:
        """
        Args:
            items: (N) rows of the catalogue, in the order of item indices.
        """
        self.items = items
        self._matching = lru_cache(max(1, CACHE_BYTES // max(1, len(items))))(self._evaluate)

    def check(self, one: Filter, place: object = None) -> None:
        """A `UserError` that begins with `place` for an expression that is none, and for an unknown item id."""
        if one.where is not None:
            try:
                self._matching(one.where)
            except UserError as error:
                raise UserError(error.problem, place=place, value=error.value, remedy=error.remedy) from error
        for name, ids in (("allow", one.allow or ()), ("deny", one.deny)):
            for item_id in ids:
                if item_id not in self._index:
                    remedy = "name items of the catalogue"
                    raise UserError(f"unknown item in {name!r}", place=place, value=item_id, remedy=remedy)

    def masks(self, filters: Sequence[Filter]) -> Tensor:
        """(F, N) bool, which items match each of F > 0 filters that have been checked."""
        allow = [None if one.allow is None else self._indices(one.allow) for one in filters]
        mask = item_mask(len(self.items), allow, [self._indices(one.deny) for one in filters])
        for row, one in zip(mask, filters, strict=True):
            if one.where is not None:
                row &= self._matching(one.where)
        return mask

    @cached_property
    def _index(self) -> dict[str, int]:
        return dict(zip(self.items["item_id"].to_list(), range(len(self.items)), strict=True))

    def _indices(self, ids: Sequence[str]) -> Tensor:
        return torch.tensor([self._index[item_id] for item_id in ids], dtype=torch.int64)

    @cached_property
    def _attributes(self) -> pl.DataFrame:
        """One row for each attribute of an item: row (of the item), name, value."""
        rows = self.items.select(ATTRIBUTES).with_row_index("row").explode(ATTRIBUTES).unnest(ATTRIBUTES)
        return rows.filter(pl.col("name").is_not_null())

    def _evaluate(self, where: str) -> Tensor:
        """(N,) bool, the items that an expression holds for.

        Raises:
            UserError: it is no boolean expression over the columns.
        """
        columns, attributes = self._names(where)
        frame = self.items.select("item_id", *sorted(columns - {"item_id", ATTRIBUTES}))
        if attributes:
            frame = frame.with_columns(self._attribute_values(sorted(attributes)).to_struct(ATTRIBUTES))
        try:
            expression = pl.sql_expr(where)
            pl.sql_expr(f"({where})")  # "price < 5 brand" names its result; in brackets it is the mistake that it is
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            reason = "" if "unable to parse" in str(error) else f" ({_first_line(error)})"
            raise UserError(f"cannot read 'where'{reason}", value=where, remedy=EXAMPLE) from error
        spelt = "; ".join(f"{name} is {_spell(self.items.schema[name])}" for name in sorted(columns))
        try:
            _check_types(expression, frame.schema)
            mask = frame.select("item_id", expression.alias("_mask"))["_mask"]
        except (TypeError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            problem = f"wrong type in 'where', {_first_line(error)}"
            raise UserError(problem, value=where, remedy=spelt or EXAMPLE) from error
        return torch.from_numpy(mask.cast(pl.Boolean).fill_null(False).to_numpy().copy())

    def _names(self, where: str) -> tuple[set[str], set[str]]:
        """The columns and the attributes that an expression names; a `UserError` for any other name."""
        if len(where) > MAX_CHARACTERS:
            remedy = f"use at most {MAX_CHARACTERS:,} characters; lists of items go to allow and deny"
            raise UserError("'where' is too long", value=where, remedy=remedy)
        columns: set[str] = set()
        attributes: set[str] = set()
        tokens = list(_tokens(where))
        for before, (kind, token), after in zip(
            ["", *(token for _, token in tokens)], tokens, [*(token for _, token in tokens[1:]), ""], strict=False
        ):
            if token == "." and before != ATTRIBUTES:
                raise UserError("a dot out of place in 'where'", value=where, remedy="write attributes.NAME")
            if kind != "name" or token.lower() in KEYWORDS:
                continue
            name = token[1:-1].replace('""', '"') if token.startswith('"') else token
            if before == ".":
                attributes.add(self._known("attribute", name, self._attributes["name"].unique().sort().to_list()))
            elif after == "(" and name == token:
                self._known("function", token.lower(), FUNCTIONS)
            else:
                columns.add(self._known("column", name, self.items.columns, quoted=name != token))
            if name == ATTRIBUTES and after != ".":
                remedy = 'write attributes.NAME, or attributes."NAME" where the name has spaces'
                raise UserError("'attributes' alone in 'where'", value=where, remedy=remedy)
        return columns, attributes

    def _known(self, what: str, name: str, known: Sequence[str], quoted: bool = False) -> str:
        if name in known:
            return name
        near = [] if quoted else difflib.get_close_matches(name.lower(), known, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"{what}s: {', '.join(known) or 'none'}"
        if what == "column" and not near:
            remedy = f"texts are in 'single quotes'; {remedy}"
        raise UserError(f"unknown {what} in 'where'", value=name, remedy=remedy)

    def _attribute_values(self, names: Sequence[str]) -> pl.DataFrame:
        """(N) rows with a column for each name; of several attributes of one name an item's first counts."""
        rows = pl.int_range(len(self.items), dtype=pl.UInt32, eager=True).alias("row").to_frame()
        for name in names:
            named = self._attributes.filter(pl.col("name") == name).unique("row", keep="first", maintain_order=True)
            rows = rows.join(named.select("row", pl.col("value").alias(f"_{name}")), on="row", how="left")
        return rows.sort("row").select(pl.col(f"_{name}").alias(name) for name in names)


def item_ids(named: Sequence[str]) -> tuple[str, ...]:
    """Item ids that are given one by one or as files with a column `item_id`, in the order of first mention.

    Raises:
        UserError: a file that has no such column or cannot be read.
    """
    found: dict[str, None] = {}
    for one in named:
        if Path(one).is_file():
            rows = read_rows(Path(one), {"item_id": pl.String()}, Rejects(), required=("item_id",))
            found |= dict.fromkeys(rows["item_id"].drop_nulls().str.strip_chars().to_list())
        else:
            found[one] = None
    return tuple(found)


def _tokens(where: str) -> Iterator[tuple[str | None, str]]:
    """Kind and text of each token of an expression."""
    place = 0
    while place < len(where):
        match = TOKEN.match(where, place)
        if match is None:
            remedy = "close the quote; a quote within is doubled" if where[place] in "'\"" else EXAMPLE
            raise UserError(f"unexpected {where[place:].split()[0][:12]!r} in 'where'", value=where, remedy=remedy)
        place = match.end()
        if match.lastgroup is not None:
            yield match.lastgroup, match.group()


def _check_types(expression: pl.Expr, schema: pl.Schema) -> None:
    """A `TypeError` where something else stands for a truth value, or a truth value for something else."""
    nothing = pl.DataFrame(schema=schema).lazy()
    remaining = [expression]  # each of them has to be a truth value
    while remaining:
        one = remaining.pop()
        operands = one.meta.pop()
        if _is_logic(one, operands):
            remaining += operands
            continue
        parts = [(one, operands)]
        for _, inputs in parts:  # grows meanwhile
            parts += [(part, part.meta.pop()) for part in inputs]
            if len(parts) > MAX_PARTS:
                raise TypeError(f"more than {MAX_PARTS} values and operators in one comparison")
        parts = [(part.meta.undo_aliases(), inputs) for part, inputs in parts]
        types = nothing.select(part.alias(str(place)) for place, (part, _) in enumerate(parts)).collect_schema()
        kind = types["0"]
        if kind not in (pl.Boolean, pl.Null):
            raise TypeError(f"{_spell(kind)} is not true or false")
        place = 1
        for _, inputs in parts:
            kinds = {types[str(number)] for number in range(place, place + len(inputs))} - {pl.Null()}
            place += len(inputs)
            if pl.Boolean() in kinds and len(kinds) > 1:
                other = next(iter(kinds - {pl.Boolean()}))
                raise TypeError(f"true or false beside {_spell(other)}")


def _is_logic(one: pl.Expr, operands: Sequence[pl.Expr]) -> bool:
    """Whether an expression is "and", "or" or "not" (which Polars reads as a cast to boolean and its contrary)."""
    if len(operands) == 2:
        second, first = operands
        return one.meta.eq(first & second) or one.meta.eq(first | second)
    return len(operands) == 1 and (one.meta.eq(~operands[0]) or one.meta.eq(operands[0].cast(pl.Boolean)))


def _spell(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List):
        return "a list" if isinstance(kind.inner, pl.Struct) else "a list of texts"
    return "true or false" if kind == pl.Boolean else "a number" if kind.is_numeric() else "a text"


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
