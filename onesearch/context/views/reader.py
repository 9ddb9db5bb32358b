"""All views of the user that a model reads, made when it is trained and made again when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views.centroids import Centroids
from onesearch.context.views.long import CentroidSums, RecencySums
from onesearch.context.views.profile import Profile
from onesearch.context.views.queries import PastQueries
from onesearch.context.views.room import Room
from onesearch.context.views.settings import ViewSettings
from onesearch.context.views.situation import Situation
from onesearch.context.views.time import Time
from onesearch.context.views.uid import Uid, rounded_up
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.run import Run
from onesearch.semantic_ids import text_quantizer


class View(Protocol):
    """One view.

    Attributes:
        positions: encoder positions that it takes at most.
    """

    positions: int

    def sizes(self) -> dict[str, Any]:
        """What the model must know to read it, as JSON values."""
        ...

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        """Arrays of Q requests, by names that begin with the view's."""
        ...

    def save(self, folder: Path) -> None:
        """Write what cannot be made again from the run."""
        ...


@dataclass(frozen=True)
class Source:
    """What views are made of: `codes` (N, L) and `vectors` (N, D), in the relevance space, of the corpus's items.

    Attributes:
        run: whose quantizer gives means of vectors their codes; without one, the nearest means do.
        model: the folder of the model that is loaded; None for a new one.
        query_tokens: the most that are read of a query.
    """

    corpus: Corpus
    codes: NDArray[np.int64]
    vectors: NDArray[np.float32]
    tokenizer: QueryTokenizer
    query_tokens: int
    run: Run | None = None
    model: Path | None = None


@dataclass(frozen=True)
class ViewReader:
    """The views of `settings`, and the room they have beside the query.

    Attributes:
        queries: the past queries, which are dropped together with history slots; None where they are not read.
        others: the other views by name.
    """

    settings: ViewSettings
    room: Room
    queries: PastQueries | None
    others: dict[str, View]

    @classmethod
    def make(cls, settings: ViewSettings, source: Source, positions: int | None) -> ViewReader:
        """
        Args:
            positions: of the encoder; None where any number will do.

        Raises:
            UserError: the log lacks what a view reads, or the encoder room for what is never dropped.
        """
        others = {name: MAKERS[name](settings, source) for name in settings.views if name in MAKERS}
        room = Room(positions)
        room.check(source.query_tokens + 1 + sum(view.positions for view in others.values()))
        queries = None
        if "queries" in settings.views:
            queries = PastQueries(source.corpus, source.tokenizer, settings.past_queries, source.query_tokens)
        return cls(settings, room, queries, others)

    def sizes(self) -> dict[str, dict[str, Any]]:
        """What the model must know of each view."""
        sizes = {name: view.sizes() for name, view in self.others.items()}
        return sizes if self.queries is None else {**sizes, "queries": self.queries.sizes()}

    def read(
        self, requests: Requests, slots: HistorySlots, tokens: NDArray[np.int64]
    ) -> tuple[HistorySlots, dict[str, NDArray[Any]]]:
        """The slots that fit, and the arrays of all views.

        Args:
            tokens: (Q,) of each request's query.
        """
        asked = np.zeros((len(requests), 0), np.int64) if self.queries is None else self.queries.latest(requests)
        fixed = tokens + 1 + sum(view.positions for view in self.others.values())
        slots, asked = self.room.fit(slots, asked, fixed)
        arrays = {} if self.queries is None else self.queries.read(requests, asked)
        for view in self.others.values():
            arrays |= view.read(requests, slots)
        return slots, arrays

    def save(self, folder: Path) -> None:
        """Write what cannot be made again from the run; the settings are the caller's to keep."""
        for view in self.others.values():
            view.save(folder)


def _uid(settings: ViewSettings, source: Source) -> View:
    if settings.uid == "paper":
        return Uid(source.corpus, source.codes.astype(np.float64), rounded_up)
    split = None if source.run is None else make_split(source.corpus, source.run.settings.split)
    found = None if source.run is None or split is None else text_quantizer(source.run, source.corpus, split)
    if found is None:
        return Uid(source.corpus, source.vectors, Centroids.of(source.codes, source.vectors).nearest)
    quantizer, vectors = found
    return Uid(source.corpus, vectors, quantizer.encode)


def _long(settings: ViewSettings, source: Source) -> View:
    if settings.long == "lrea":
        return RecencySums(source.corpus, source.vectors, settings.long_tokens)
    return CentroidSums(source.corpus, Centroids.of(source.codes, source.vectors), settings.long_tokens)


def _profile(settings: ViewSettings, source: Source) -> View:
    return Profile.fit(source.corpus) if source.model is None else Profile.load(source.corpus, source.model)


def _situation(what: Literal["place", "device"]) -> Callable[[ViewSettings, Source], View]:
    def made(settings: ViewSettings, source: Source) -> View:
        if source.model is None:
            return Situation.fit(source.corpus, what)
        return Situation.load(source.corpus, what, source.model)

    return made


MAKERS: dict[str, Callable[[ViewSettings, Source], View]] = {
    "uid": _uid,
    "long": _long,
    "profile": _profile,
    "time": lambda settings, source: Time(source.corpus),
    "place": _situation("place"),
    "device": _situation("device"),
}
"""Every view but the past queries, which share the room with the history slots."""
