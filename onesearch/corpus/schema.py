"""The corpus on disk: which files, which columns, which types. Every source is turned into this."""

from __future__ import annotations

from typing import Final

import polars as pl

SCHEMA_VERSION: Final = 3

EVENT_KINDS: Final = ("impression", "click", "cart", "purchase")
"""What a user did with an item, weakest first; `Corpus.kind` holds the position in this tuple."""

QUERY_KINDS: Final = ("category", "type", "type+size", "category+brand")
"""Which fields a derived query names."""

QUERY_NOISE: Final = ("clean", "dropped", "shuffled", "misspelt")
"""What was done to a derived query to make it untidy."""

ITEMS: Final[dict[str, pl.DataType]] = {
    "item_id": pl.String(),
    "title": pl.String(),
    "description": pl.String(),
    "brand": pl.String(),
    "categories": pl.List(pl.String()),  # root to leaf
    "attributes": pl.List(pl.Struct({"name": pl.String(), "value": pl.String()})),
    "price": pl.Float64(),
    "images": pl.List(pl.String()),
    "created_at": pl.Int64(),  # seconds since 1970, UTC
}
USERS: Final[dict[str, pl.DataType]] = {
    "user_id": pl.String(),
    "attributes": pl.List(pl.Struct({"name": pl.String(), "value": pl.String()})),
}
EVENTS: Final[dict[str, pl.DataType]] = {
    "user_id": pl.String(),
    "item_id": pl.String(),
    "timestamp": pl.Int64(),  # seconds since 1970, UTC; null where only the order is known
    "position": pl.Int64(),  # place in the user's history; null where the time is known
    "event": pl.String(),  # one of EVENT_KINDS
    "query": pl.String(),
    "session_id": pl.String(),
    "rank": pl.Int32(),  # place in the shown list, from 0
    "place": pl.String(),  # where: a store, a region, a market
    "device": pl.String(),  # with what: phone, web, kiosk
    "query_kind": pl.String(),  # one of QUERY_KINDS where the query is derived
    "query_noise": pl.String(),  # one of QUERY_NOISE where the query is derived
}
RELEVANCE: Final[dict[str, pl.DataType]] = {"query": pl.String(), "item_id": pl.String(), "grade": pl.Float64()}
OFFERS: Final[dict[str, pl.DataType]] = {
    "item_id": pl.String(),
    "kind": pl.String(),  # how the item is put forward: display, mailer, coupon
    "start": pl.Int64(),  # seconds since 1970, UTC; from then on,
    "end": pl.Int64(),  # and until before then
    "place": pl.String(),  # null where it holds everywhere
}

TABLES: Final = {"items": ITEMS, "users": USERS, "events": EVENTS, "relevance": RELEVANCE, "offers": OFFERS}
REQUIRED: Final = {
    "items": ("item_id", "title"),
    "users": ("user_id",),
    "events": ("user_id", "item_id", "event"),  # and one of timestamp, position
    "relevance": ("query", "item_id", "grade"),
    "offers": ("item_id", "kind", "start", "end"),
}
MAX_QUERY_CHARACTERS: Final = 2_000
"""A longer query is refused: nobody typed it, and it would cost the whole batch its speed."""
