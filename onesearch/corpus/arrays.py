"""The log as arrays on disk, which examples are made of: read through memory maps, so that it need not fit into memory.

`arrays/NAME.npy` beside the Parquet tables, one element an event, and `arrays/queries.parquet`, the distinct queries in
the order in which the sorted log first has them; likewise places and devices. They say what `events.parquet` says, with
numbers for texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus.blocks import system_errors
from onesearch.corpus.schema import EVENT_KINDS, QUERY_KINDS, QUERY_NOISE
from onesearch.corpus.sorting import SESSION, USER, place_in
from onesearch.errors import UserError
from onesearch.files import checksum

TYPES: Final = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "kind": np.int8,
    "session": np.int32,
    "query": np.int32,
    "place": np.int32,
    "device": np.int32,
    "rank": np.int32,
    "query_kind": np.int8,
    "query_noise": np.int8,
    "history_end": np.int64,
    "next_same": np.int64,
    "nth_same": np.int32,
}
"""The arrays with one element an event; `offsets` has one a user, and one more. See `Corpus` for what they hold."""

VOCABULARIES: Final = {"query": "queries", "place": "places", "device": "devices"}
"""Columns of events whose distinct texts are numbered, and what these are called."""

Arrays = dict[str, NDArray[Any]]


def arrays_of(events: pl.DataFrame, items: pl.Series, clock: bool) -> Arrays:
    """The arrays of some users' sorted events (`sorting.in_order`), as if these were the whole log; without the
    columns of `VOCABULARIES`.

    Nothing is kept between calls; `ArrayFiles` moves the numbers to their place in the log.
    """
    user, session = events[USER].to_numpy(), _sessions(events[USER].to_numpy(), events[SESSION].to_numpy())
    item = place_in(events["item_id"], items)
    time = events["timestamp" if clock else "position"].to_numpy().astype(np.int64)
    next_same, nth_same = same_item_links(user, item)
    return {
        "user": user,
        "item": item,
        "time": time,
        "kind": place_in(events["event"], pl.Series(EVENT_KINDS)),
        "session": session,
        "rank": events["rank"].fill_null(-1).to_numpy(),
        "query_kind": place_in(events["query_kind"], pl.Series(QUERY_KINDS)),
        "query_noise": place_in(events["query_noise"], pl.Series(QUERY_NOISE)),
        "history_end": _history_ends(user, time, session),
        "next_same": next_same,
        "nth_same": nth_same,
    }


def _sessions(user: NDArray[np.int32], session: NDArray[np.int32]) -> NDArray[np.int32]:
    """(E,) sessions numbered from 1, by user and then by name; 0 for none. What two users call the same is not."""
    numbers = np.zeros(len(user), np.int32)
    named = np.flatnonzero(session >= 0)
    key = user[named].astype(np.int64) * (int(session.max(initial=0)) + 1) + session[named]
    numbers[named] = np.unique(key, return_inverse=True)[1] + 1
    return numbers


def _history_ends(user: NDArray[np.int32], time: NDArray[np.int64], session: NDArray[np.int32]) -> NDArray[np.int64]:
    """(E,) first event of this event's session (of its user and time, where session is 0).

    Sessions may interleave; the history of each still ends before its own first event.
    """
    if len(user) == 0:
        return np.zeros(0, np.int64)
    starts = np.ones(len(user), bool)
    starts[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1]) | (time[1:] != time[:-1])
    first = np.flatnonzero(starts)
    ends = first[np.cumsum(starts) - 1].astype(np.int64)
    named = np.flatnonzero(session > 0)
    begin = np.zeros(int(session.max()) + 1, np.int64)
    begin[session[named[::-1]]] = named[::-1]  # the last one to be written, the first event, stays
    ends[named] = begin[session[named]]
    return ends


def same_item_links(user: NDArray[np.int32], item: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Per event: the next event with the same user and item (E if none), and how many came before."""
    total = len(user)
    next_same = np.full(total, total, np.int64)
    nth_same = np.zeros(total, np.int32)
    if total == 0:
        return next_same, nth_same
    key = user.astype(np.int64) * (int(item.max()) + 1) + item
    order = np.argsort(key, kind="stable")
    same = key[order[1:]] == key[order[:-1]]
    next_same[order[:-1][same]] = order[1:][same]
    run_start = np.flatnonzero(np.concatenate([[True], ~same]))
    run = np.cumsum(np.concatenate([[True], ~same])) - 1
    nth_same[order] = np.arange(total) - run_start[run]
    return next_same, nth_same


class ArrayFiles:
    """Writes the arrays of a log, a few users at a time; how many events there will be is known."""

    def __init__(self, folder: Path, events: int) -> None:
        folder.mkdir()
        self._folder, self._events = folder, events
        self._event = self._user = self._session = 0  # how many are written
        self._offsets = [np.zeros(1, np.int64)]
        self._texts = {name: pl.DataFrame(schema={"text": pl.String, "number": pl.Int32}) for name in VOCABULARIES}
        self._columns = {name: _Column(folder / f"{name}.npy", np.dtype(kind), events) for name, kind in TYPES.items()}

    def append(self, arrays: Arrays, texts: pl.DataFrame, users: int) -> None:
        """Put the events of the next users behind the others.

        Args:
            arrays: what `arrays_of` gave.
            texts: the columns of `VOCABULARIES` of each event, null where it has none.
            users: how many users these are.
        """
        count = len(texts)
        named = arrays["session"] > 0
        self._offsets.append(self._event + np.cumsum(np.bincount(arrays["user"], minlength=users)))
        arrays["user"] = arrays["user"] + self._user
        arrays["session"] = arrays["session"] + np.where(named, self._session, 0)
        arrays["history_end"] = arrays["history_end"] + self._event
        last = arrays["next_same"] == count
        arrays["next_same"] = np.where(last, self._events, arrays["next_same"] + self._event)
        arrays |= {name: self._numbers(name, texts[name]) for name in VOCABULARIES}
        for name, column in self._columns.items():
            column.append(arrays[name])
        self._event, self._user = self._event + count, self._user + users
        self._session = int(arrays["session"].max(initial=self._session))

    def close(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Finish the files; their description for `corpus.json`, and how many distinct texts there are of each kind."""
        about = {name: column.close() for name, column in self._columns.items()}
        offsets = np.concatenate(self._offsets)
        column = _Column(self._folder / "offsets.npy", offsets.dtype, len(offsets))
        column.append(offsets)
        about["offsets"] = column.close()
        for name, called in VOCABULARIES.items():
            path, texts = self._folder / f"{called}.parquet", self._texts[name]["text"]
            with system_errors(path):
                texts.alias(name).to_frame().write_parquet(path)
            about[called] = {"shape": [len(texts)], "checksum": checksum(path)}
        return about, {called: len(self._texts[name]) for name, called in VOCABULARIES.items()}

    def _numbers(self, name: str, texts: pl.Series) -> NDArray[np.int32]:
        """(n,) the number of each text, in the order of their first appearance; -1 for null."""
        seen, distinct = self._texts[name], texts.drop_nulls().unique(maintain_order=True).alias("text").to_frame()
        new = distinct.join(seen, on="text", how="anti", maintain_order="left")
        number = pl.int_range(len(seen), len(seen) + pl.len(), dtype=pl.Int32)
        seen = self._texts[name] = pl.concat([seen, new.with_columns(number=number)])
        known = distinct.join(seen, on="text", how="left")
        found = texts.alias("text").to_frame().join(known, on="text", how="left", maintain_order="left")
        return found["number"].fill_null(-1).to_numpy()


class _Column:
    """An `.npy` file that is written piece by piece."""

    def __init__(self, path: Path, kind: np.dtype[Any], length: int) -> None:
        self._kind, self._length, self._written = kind, length, 0
        self._hash = hashlib.sha256()
        self._handle: BinaryIO = path.open("w+b")
        np.lib.format.write_array_header_1_0(
            self._handle, {"descr": kind.str, "fortran_order": False, "shape": (length,)}
        )
        self._handle.seek(0)
        self._hash.update(self._handle.read())

    def append(self, values: NDArray[Any]) -> None:
        piece = np.ascontiguousarray(values, self._kind).data
        self._handle.write(piece)
        self._hash.update(piece)
        self._written += len(values)

    def close(self) -> dict[str, Any]:
        self._handle.close()
        if self._written != self._length:
            raise ValueError(f"{self._written} of {self._length} elements were written")
        return {"dtype": self._kind.name, "shape": [self._length], "checksum": self._hash.hexdigest()}


def open_arrays(folder: Path, about: Mapping[str, Any]) -> tuple[Arrays, dict[str, list[str]]]:
    """The arrays as memory maps, and the distinct texts of `VOCABULARIES` by what they are called.

    Args:
        folder: of the corpus.
        about: their description in `corpus.json`.

    Raises:
        UserError: a file is missing or is not what the description says.
    """
    remedy = "run `onesearch prepare` again"
    arrays = {}
    for name in (*TYPES, "offsets"):
        path = folder / "arrays" / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r").view(np.ndarray)
        except (OSError, ValueError) as error:
            raise UserError(f"incomplete corpus: {error}", place=path, remedy=remedy) from error
        if [array.dtype.name, list(array.shape)] != [about[name]["dtype"], about[name]["shape"]]:
            found = f"{array.dtype.name} {list(array.shape)}"
            raise UserError("not the array that corpus.json describes", place=path, value=found, remedy=remedy)
        arrays[name] = array
    texts = {
        called: pl.read_parquet(folder / f"arrays/{called}.parquet")[name].to_list()
        for name, called in VOCABULARIES.items()
    }
    return arrays, texts
