"""The rules of the corpus: what a row must satisfy to be written."""

from __future__ import annotations

import logging
from typing import Final

import polars as pl

from onesearch.corpus.schema import EVENT_KINDS, MAX_QUERY_CHARACTERS, REQUIRED, TABLES
from onesearch.corpus.tables import FILE, ROW, Rejects
from onesearch.errors import UserError

log = logging.getLogger(__name__)

LATEST_SECOND: Final = 100_000_000_000
"""A later timestamp (year 5138) is in milliseconds, not seconds."""


def check_items(items: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    """The items in the full schema, only those that satisfy it.

    Raises:
        UserError: a required column is missing, no item is left, or (with "stop") a row breaks a rule.
    """
    items = _unique(complete(items, "items"), "item_id", rejects)
    if rejects.on_error == "mend":
        items = _called_by_id(items)
    remedy = "give the item a title, it is what searches are matched with, or keep it under its id: --on-error mend"
    items = _required(items, "title", rejects, remedy)
    price = pl.col("price").fill_nan(None)
    bad_price = (price < 0) | price.is_infinite()
    items = rejects.drop(items.with_columns(price), bad_price, "price", "no price", "use a number from 0 up, or null")
    if items.is_empty():
        raise UserError("no usable item", place="items", remedy="see the rejected rows; a corpus needs items")
    return items


def _called_by_id(items: pl.DataFrame) -> pl.DataFrame:
    """Items without a title get their id for one: they were bought, and can be bought again."""
    untitled = pl.col("title").str.strip_chars().fill_null("") == ""
    count = int(items.select(untitled.sum()).item())
    if count:
        first = items.filter(untitled)["item_id"][0]
        log.warning("%s items have no title and are called by their id, such as %s", f"{count:,}", first)
    return items.with_columns(title=pl.when(untitled).then("item_id").otherwise("title"))


def check_users(users: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    """The users in the full schema, each once."""
    return _unique(complete(users, "users"), "user_id", rejects)


def check_events(events: pl.DataFrame, items: pl.Series, clock: bool, rejects: Rejects) -> pl.DataFrame:
    """A block of events in the full schema, only those that satisfy it. Nothing is remembered between blocks.

    Args:
        events: some events, `complete`.
        items: the known item ids.
        clock: whether any event of the whole log has a timestamp: then each needs one, and otherwise a position.
        rejects: takes the others.
    """
    events = _required(events, "user_id", rejects, "name the user of every event")
    events = _required(events, "item_id", rejects, "name the item of every event")
    known = ", ".join(EVENT_KINDS)
    odd = ~pl.col("event").is_in(EVENT_KINDS) | pl.col("event").is_null()
    events = rejects.drop(events, odd, "event", "unknown kind of event", f"use one of {known}")
    events = _timed(events, clock, rejects)
    unknown = ~pl.col("item_id").is_in(items.implode())
    events = rejects.drop(events, unknown, "item_id", "unknown item", "add it to the items or remove the event")
    events = events.with_columns(_named("query"), _named("place"), _named("device"))
    return _short(events, rejects)


def check_relevance(relevance: pl.DataFrame, items: pl.Series, rejects: Rejects) -> pl.DataFrame:
    """The judgements in the full schema, only those that satisfy it."""
    relevance = _required(complete(relevance, "relevance"), "query", rejects, "name the query of every judgement")
    relevance = _short(relevance, rejects)
    relevance = _required(relevance, "item_id", rejects, "name the item of every judgement")
    grade = pl.col("grade").fill_nan(None)
    bad = grade.is_null() | ~grade.is_finite()
    relevance = rejects.drop(relevance, bad, "grade", "no grade", "use a number, larger for better")
    unknown = ~pl.col("item_id").is_in(items.implode())
    return rejects.drop(relevance, unknown, "item_id", "unknown item", "add it to the items or remove the row")


def check_offers(offers: pl.DataFrame, items: pl.Series, clock: bool, rejects: Rejects) -> pl.DataFrame:
    """The offers in the full schema, only those that satisfy it.

    Raises:
        UserError: the log has no clock, so that nothing can be said to be on offer at the time of an event.
    """
    offers = complete(offers, "offers")
    if len(offers) and not clock:
        remedy = "give the events timestamps, or leave the offers out"
        raise UserError("offers need a log with clock times", place=offers[FILE][0], remedy=remedy)
    offers = _required(offers, "item_id", rejects, "name the item of every offer")
    offers = _required(offers, "kind", rejects, "name the kind of every offer: display, mailer, coupon")
    unknown = ~pl.col("item_id").is_in(items.implode())
    offers = rejects.drop(offers, unknown, "item_id", "unknown item", "add it to the items or remove the offer")
    for column in ("start", "end"):
        time = pl.col(column)
        wrong = time.is_null() | (time.abs() > LATEST_SECOND)
        remedy = "give the second in which the offer begins, and the one in which it is over"
        offers = rejects.drop(offers, wrong, column, "not in seconds since 1970", remedy)
    late = pl.col("end") <= pl.col("start")
    offers = rejects.drop(offers, late, "end", "the offer ends before it begins", "give an end after the start")
    return offers.with_columns(_named("place"))


def complete(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    """The columns of a table in order, with their types, `FILE` and `ROW`; those that are not there are null.

    Raises:
        UserError: a required column is missing.
    """
    schema = TABLES[table]
    for column in REQUIRED[table]:
        if column not in frame.columns:
            place = frame[FILE][0] if len(frame) else table
            raise UserError("missing column", place=place, value=column, remedy=f"{table} need it in every row")
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in frame.columns]
    typed = pl.Schema({**schema, FILE: pl.String(), ROW: pl.UInt32()})
    return frame.with_columns(absent).select(*typed).cast(typed)


def _named(column: str) -> pl.Expr:
    """A text without spaces around; nothing is null."""
    return pl.col(column).str.strip_chars().replace("", None)


def _required(frame: pl.DataFrame, column: str, rejects: Rejects, remedy: str) -> pl.DataFrame:
    """Text columns are stripped of spaces around; nothing must be left empty."""
    frame = frame.with_columns(pl.col(column).str.strip_chars())
    return rejects.drop(frame, pl.col(column).is_null() | (pl.col(column) == ""), column, f"empty {column}", remedy)


def _unique(frame: pl.DataFrame, column: str, rejects: Rejects) -> pl.DataFrame:
    frame = _required(frame, column, rejects, "give every row an id")
    again = ~pl.col(column).is_first_distinct()
    return rejects.drop(frame, again, column, f"duplicate {column}", "keep one of the rows")


def _timed(events: pl.DataFrame, clock: bool, rejects: Rejects) -> pl.DataFrame:
    """Every event has a timestamp, or every event has a position."""
    time = pl.col("timestamp")
    if not clock:
        remedy = "give seconds since 1970, or the event's position in the user's history"
        no_position = pl.col("position").is_null()
        return rejects.drop(events, no_position, "timestamp", "neither timestamp nor position", remedy)
    remedy = "other events have one: give all a timestamp, or none and positions"
    events = rejects.drop(events, time.is_null(), "timestamp", "no timestamp", remedy)
    remedy = "divide milliseconds by 1000"
    events = rejects.drop(events, time.abs() > LATEST_SECOND, "timestamp", "not in seconds since 1970", remedy)
    return events.with_columns(position=pl.lit(None, pl.Int64))


def _short(frame: pl.DataFrame, rejects: Rejects) -> pl.DataFrame:
    too_long = pl.col("query").str.len_chars() > MAX_QUERY_CHARACTERS
    remedy = f"at most {MAX_QUERY_CHARACTERS:,} characters"
    return rejects.drop(frame, too_long, "query", "the query is too long", remedy)
