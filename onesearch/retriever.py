"""A trained run that answers requests: the same path for the command line, serving and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.allowed import Allowed
from onesearch.corpus import Corpus, Requests
from onesearch.corpus.popularity import DAY
from onesearch.corpus.reader import SPELLING
from onesearch.corpus.schema import MAX_QUERY_CHARACTERS
from onesearch.corpus.spelling import Spelling
from onesearch.errors import UserError
from onesearch.readers import Reader, load_reader
from onesearch.run import Run
from onesearch.search import beam_search
from onesearch.search.fusion import MODES, Mode, fused
from onesearch.sid import SidTable
from onesearch.where import EVERYTHING, Filter, ItemFilters

BEAMS = 64
"""Beam width: the results of the demo are with this one."""

BATCH = 128
"""Requests searched at once: bounds memory."""

FILTER_BYTES = 2**28
"""Memory for the different filters of the requests that are searched at once; a filter alone may take more."""

BYTES_AN_ITEM = 6
"""A filter's mask, the same in the order of semantic IDs, and its cumulative sum in int32."""


@dataclass(frozen=True)
class Request:
    """A query, who asks it (None for nobody in particular), and which items may come out; where it is asked (None for
    where the user was last) and with what device."""

    query: str
    user: str | None = None
    filter: Filter = EVERYTHING
    place: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Hit:
    """One item found; `score` is the log-probability of its semantic ID, or what the mode ranks by; `on_offer` are the
    kinds of offers it is in where it is asked for, as far as the model is told."""

    item_id: str
    title: str
    brand: str | None
    price: float | None
    score: float
    sid: str
    bought_before: int
    on_offer: list[str]


@dataclass(frozen=True)
class Given:
    """A past purchase that the model was given; `days_ago` is None where the log has no clock."""

    item_id: str
    title: str
    times: int
    days_ago: float | None


@dataclass(frozen=True)
class Answer:
    """The hits of one request, best first, the purchases the model was given, most relevant first, and a remark: that
    the query was read otherwise than it was typed, that the user, the place or the device is unknown, that fewer items
    match the filter than were asked for.

    Attributes:
        exact: whether these are the hits of scoring every item; otherwise an item that the beam did not reach may have
            a higher score than the last.
        mass: least and most of the model's probability that the catalogue has, as far as the search has seen; None
            where probabilities are normalised over the catalogue, which then has all.
    """

    query: str
    user: str | None
    known_user: bool
    hits: list[Hit]
    given: list[Given]
    exact: bool
    mass: tuple[float, float] | None
    note: str | None


@dataclass(frozen=True)
class Ranked:
    """The answers to Q requests: (Q, k) item indices, -1 in empty places, and their scores; (Q,) whether they are those
    of scoring every item; (Q, 2) the mass of the catalogue, None where it is all."""

    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    exact: NDArray[np.bool_]
    mass: NDArray[np.float32] | None


def check_length(query: str, place: str) -> None:
    """A `UserError` for a query of more than MAX_QUERY_CHARACTERS characters."""
    if len(query) > MAX_QUERY_CHARACTERS:
        remedy = f"use at most {MAX_QUERY_CHARACTERS:,} characters"
        raise UserError("query too long", place=place, value=query, remedy=remedy)


class Retriever:
    """Answers requests with the items of one run."""

    def __init__(self, corpus: Corpus, table: SidTable, reader: Reader) -> None:
        self.corpus, self.table, self.reader = corpus, table, reader
        self.filters = ItemFilters(corpus.items)
        self._user = {user: place for place, user in enumerate(corpus.users["user_id"].to_list())}
        self._place = {name: number for number, name in enumerate(corpus.places)}
        self._device = {name: number for number, name in enumerate(corpus.devices)}

    @classmethod
    def load(cls, folder: Path | str, stage: str = "sft") -> Retriever:
        """Load `models/STAGE` of a run folder.

        Raises:
            UserError: there is no such run, or it is not trained yet.
        """
        run = Run.open(folder)
        if not (run.folder / "models" / stage / "config.json").exists():
            how = f"onesearch train --run {folder}"
            if stage != "sft":
                how = f"accelerate launch training/sft.py --run {folder} --stage {stage} --config ..."
            raise UserError("no trained generator", place=run.folder / "models" / stage, remedy=how)
        corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
        if not table.item_ids.equals(corpus.items["item_id"]):
            remedy = f"onesearch quantize --run {folder}"
            raise UserError("the SID table is of another catalogue", place=run.folder / "sid", remedy=remedy)
        return cls(corpus, table, load_reader(run, stage, corpus, table))

    @cached_property
    def spelling(self) -> Spelling:
        """How the words of queries are read."""
        return Spelling.load(self.corpus.folder / SPELLING)

    def rank(
        self,
        requests: Requests,
        k: int,
        beams: int = BEAMS,
        filters: Sequence[Filter] | None = None,
        mode: Mode = "generate",
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The k best items of Q requests: (Q, k) item indices, -1 where there are fewer, and their scores. The
        arguments are those of `ranked`."""
        found = self.ranked(requests, k, beams, filters, mode)
        return found.items, found.scores

    def ranked(
        self,
        requests: Requests,
        k: int,
        beams: int = BEAMS,
        filters: Sequence[Filter] | None = None,
        mode: Mode = "generate",
    ) -> Ranked:
        """The k best items of Q requests, and what the search knows of them.

        Args:
            mode: what finds them, see `onesearch.search.fusion`; scores are log-probabilities of semantic IDs, logits
                of the interest head, or both together.
            filters: (Q) what each request asks of its items, checked with `ItemFilters.check`; by default nothing. A
                filter that leaves at most k items returns all of them, whatever the beam.

        Raises:
            UserError: the mode needs an interest head and the model has none.
        """
        check_mode(self.reader, mode)
        asked = [EVERYTHING] * len(requests) if filters is None else filters
        items = np.full((len(requests), k), -1, np.int32)
        scores = np.full((len(requests), k), -np.inf, np.float32)
        exact, mass, closed = np.zeros(len(requests), bool), np.ones((len(requests), 2), np.float32), True
        for place in _parts(asked, max(1, FILTER_BYTES // (BYTES_AN_ITEM * len(self.corpus.items)))):
            scorer: Any = self.reader.read(requests.part(place))
            masks, row = self._masks(asked[place])
            nearest = self.reader.interest
            if mode == "interest" and nearest is not None:
                found, score = nearest.search(scorer.interest, k, masks, row)
                exact[place] = True
            else:
                allowed = None if masks is None else Allowed.of(scorer.index, masks, row)
                if mode == "both" and nearest is not None:
                    found, score = fused(scorer, nearest, beams, k, allowed, masks)
                else:
                    beam = beam_search(scorer, max(beams, k), k, allowed)
                    found, score, closed = beam.items, beam.scores, scorer.closed
                    exact[place], mass[place] = beam.exact.cpu().numpy(), beam.mass.cpu().numpy()
            items[place], scores[place] = found.cpu().numpy(), score.float().cpu().numpy()
        return Ranked(items, scores, exact, None if closed else mass)

    def check(self, request: Request, place: str) -> None:
        """A `UserError` that begins with `place`: for a query of more than MAX_QUERY_CHARACTERS characters, a `where`
        that is no boolean expression over the catalogue's columns, or an unknown item in `allow` or `deny`."""
        check_length(request.query, place)
        self.filters.check(request.filter, place)

    def search(self, requests: Sequence[Request], k: int, mode: Mode = "generate") -> list[Answer]:
        """The k best items for each request, as of the end of the log; see `rank` for `mode`.

        A user whom the log does not know is answered without history, and the answer says so; likewise where fewer
        than k items match the filter.

        Raises:
            UserError: a request that does not pass `check`; a mode that the model does not have.
        """
        if not requests:
            return []
        for number, request in enumerate(requests, 1):
            self.check(request, place=f"request {number}")
        asked = self._now(requests)
        found = self.ranked(asked, k, filters=[request.filter for request in requests], mode=mode)
        given = self.reader.given(asked)
        return [self._answer(request, asked, place, found, given[place]) for place, request in enumerate(requests)]

    def _masks(self, filters: Sequence[Filter]) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The filters of B requests as masks (R, N), equal ones once, and (B,) the mask of each; None where no request
        has one."""
        rows = {one: row for row, one in enumerate(dict.fromkeys(filters))}
        if rows.keys() <= {EVERYTHING}:
            return None, None
        device = self.reader.device
        return self.filters.masks(list(rows)).to(device), torch.tensor([rows[one] for one in filters], device=device)

    def _now(self, requests: Sequence[Request]) -> Requests:
        """The requests as if asked right after the last event of the log."""
        user = np.array([self._user.get(request.user or "", -1) for request in requests], np.int32)
        offsets, known = self.corpus.offsets, user >= 0
        now = int(self.corpus.time.max(initial=0)) + 1
        last = np.append(self.corpus.place, -1)[np.where(known, offsets[user + 1], 0) - 1] if known.any() else user
        said = [request.place for request in requests]
        place = [-1 if name is None else self._place.get(name, -1) for name in said]
        asked = np.array([name is not None for name in said])
        return Requests(
            event=np.full(len(user), -1, np.int64),
            user=user,
            target=np.full(len(user), -1, np.int32),
            time=np.full(len(user), now, np.int64),
            history_start=np.where(known, offsets[user], 0),
            history_end=np.where(known, offsets[user + 1], 0),
            place=np.where(asked, place, np.where(known, last, -1)).astype(np.int32),
            device=np.array([self._device.get(request.device or "", -1) for request in requests], np.int32),
            query=[self.spelling.mended(request.query) for request in requests],
        )

    def _answer(
        self,
        request: Request,
        asked: Requests,
        place: int,
        ranked: Ranked,
        events: NDArray[np.int64],
    ) -> Answer:
        corpus, items, scores = self.corpus, ranked.items[place], ranked.scores[place]
        past = corpus.item[asked.history_start[place] : asked.history_end[place]]
        found = items[items >= 0]
        columns = corpus.items.select("item_id", "title", "brand", "price")
        rows = columns[pl.Series(found)].iter_rows() if len(found) else iter(())
        offers, one = self.reader.offers, asked.part(slice(place, place + 1))
        flags = np.zeros((len(found), 0)) if offers is None else offers.of_items(offers.rows(one), found[None])[0]
        kinds = () if offers is None else offers.kinds
        hits = [
            Hit(
                item_id=item_id,
                title=title,
                brand=brand,
                price=price,
                score=float(score),
                sid=self.table.text(item),
                bought_before=int((past == item).sum()),
                on_offer=[kind for kind, flag in zip(kinds, its, strict=True) if flag],
            )
            for item, score, its, (item_id, title, brand, price) in zip(
                found.tolist(), scores, flags, rows, strict=False
            )
        ]
        given = [
            Given(
                item_id=str(columns["item_id"][item]),
                title=str(columns["title"][item]),
                times=int((past == item).sum()),
                days_ago=float(asked.time[place] - corpus.time[event]) / DAY if corpus.has_clock else None,
            )
            for event, item in ((int(event), int(corpus.item[event])) for event in events if event >= 0)
        ]
        known = bool(asked.user[place] >= 0)
        notes = []
        if asked.query[place] != request.query:
            notes.append(f"read as “{asked.query[place]}”")
        if request.user is not None and not known:
            notes.append(f"user {request.user!r} is not in the log: answered without history")
        for what, name, names in (("place", request.place, self._place), ("device", request.device, self._device)):
            if name is not None and name not in names:
                notes.append(f"{what} {name!r} is not in the log: answered as if it were not known")
        if request.filter != EVERYTHING and len(hits) < len(items):
            notes.append(_few(len(hits)))
        mass = None if ranked.mass is None else (float(ranked.mass[place, 0]), float(ranked.mass[place, 1]))
        note = "; ".join(notes) or None
        return Answer(request.query, request.user, known, hits, given, bool(ranked.exact[place]), mass, note)


def check_mode(reader: Reader, mode: str) -> Mode:
    """The mode; a `UserError` where it is unknown, or needs an interest head and the model has none."""
    if mode not in MODES:
        raise UserError("unknown mode", place="--mode", value=mode, remedy=f"use one of {', '.join(MODES)}")
    if mode != "generate" and reader.interest is None:
        remedy = "use --mode generate, or train a model with one: training/sequence.py --interest 1"
        raise UserError("this model has no interest head", place="--mode", value=mode, remedy=remedy)
    return cast(Mode, mode)


def _few(matching: int) -> str:
    """Fewer hits than were asked for are all the items that match, since a beam is never narrower than that."""
    if matching == 0:
        return "no item matches the filter"
    return "only 1 item matches the filter" if matching == 1 else f"only {matching:,} items match the filter"


def _parts(filters: Sequence[Filter], most: int) -> Iterator[slice]:
    """Q requests in turn, so many at once that neither they nor their different filters are too many."""
    start, seen = 0, set[Filter]()
    for place, one in enumerate(filters):
        if place - start == BATCH or (len(seen) == most and one not in seen):
            yield slice(start, place)
            start, seen = place, set()
        seen.add(one)
    if start < len(filters):
        yield slice(start, len(filters))
