"""Which events are for training, tuning and the final report; and search requests taken from the log."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus.reader import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError

TRAIN, VALID, TEST = 0, 1, 2


def time_split(corpus: Corpus, valid: float = 0.05, test: float = 0.05) -> NDArray[np.int8]:
    """(E,) int8 of TRAIN, VALID, TEST by time: the last `test` share of events is TEST, the share before it VALID.

    A session counts as a whole by its first event, and events of one moment stay together: no basket is cut in two.
    """
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise UserError("shares must be positive and leave something to train on", value=(valid, test))
    if not corpus.has_clock:
        raise UserError("this log has no clock times", place=corpus.folder, remedy="use --split leave-one-out")
    first_valid, first_test = np.quantile(corpus.time, [1 - valid - test, 1 - test], method="higher")
    split = np.full(len(corpus.time), TRAIN, np.int8)
    for span in corpus.spans():
        begun = corpus.time[corpus.history_end[span]]
        split[span] = np.where(begun >= first_test, TEST, np.where(begun >= first_valid, VALID, TRAIN))
    return split


def leave_one_out(corpus: Corpus) -> NDArray[np.int8]:
    """(E,) int8: each user's last visit is TEST, the one before VALID, the rest TRAIN (users with 3 visits or more).

    A visit is a session, or where the log has none the events of one moment: mostly a single event.
    """
    split = np.zeros(len(corpus.user), np.int8)
    starts = np.flatnonzero(_marked(corpus, corpus.history_end))  # (visits,) first events
    user = corpus.user[starts]
    last = np.searchsorted(user, np.arange(len(corpus.users)), side="right")
    visits = np.bincount(user, minlength=len(corpus.users))
    last = last[visits >= 3]
    for back, part in ((1, TEST), (2, VALID)):
        split[_marked(corpus, starts[last - back])[corpus.history_end]] = part
    return split


def _marked(corpus: Corpus, events: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(E,) whether an event is one of these."""
    marked = np.zeros(len(corpus.user), bool)
    marked[events] = True
    return marked


def make_split(corpus: Corpus, kind: Literal["time", "leave-one-out"] = "time") -> NDArray[np.int8]:
    """The split by name; see `time_split` and `leave_one_out`."""
    return time_split(corpus) if kind == "time" else leave_one_out(corpus)


@dataclass(frozen=True)
class Requests:
    """Q search requests of the log, each with what was known when it was made, and the item that followed.

    Attributes:
        event: (Q,) int64 index of the event in the corpus.
        user, target: (Q,) int32 indices. time: (Q,) int64.
        history_start, history_end: (Q,) int64; the history is this slice of the corpus's events.
        place, device: (Q,) int32 indices of the corpus's, -1 where it is not known.
        query: Q texts, as they are read (`Corpus.meant`).
    """

    event: NDArray[np.int64]
    user: NDArray[np.int32]
    target: NDArray[np.int32]
    time: NDArray[np.int64]
    history_start: NDArray[np.int64]
    history_end: NDArray[np.int64]
    place: NDArray[np.int32]
    device: NDArray[np.int32]
    query: list[str]

    def __len__(self) -> int:
        return len(self.event)

    def part(self, rows: slice) -> Requests:
        """Some of the requests."""
        values = {field.name: getattr(self, field.name)[rows] for field in fields(self)}
        return Requests(**values)

    def take(self, rows: NDArray[np.integer]) -> Requests:
        """The requests of these places."""
        values = {field.name: getattr(self, field.name)[rows] for field in fields(self) if field.name != "query"}
        return Requests(**values, query=[self.query[row] for row in rows])

    @classmethod
    def of(cls, corpus: Corpus, events: NDArray[np.int64]) -> Requests:
        """The requests behind these events; an event without a query gets the empty one."""
        user = corpus.user[events]
        texts = [corpus.meant[q] if q >= 0 else "" for q in corpus.query[events]]
        return cls(
            event=events,
            user=user,
            target=corpus.item[events],
            time=corpus.time[events],
            history_start=corpus.offsets[user],
            history_end=corpus.history_end[events],
            place=corpus.place[events],
            device=corpus.device[events],
            query=texts,
        )


def sample_requests(corpus: Corpus, split: NDArray[np.int8], part: int, size: int, seed: int) -> Requests:
    """At most `size` requests of one part of the split (purchases, or clicks where the log has no purchases).

    Uniform without replacement, in the order of the corpus; the same seed gives the same requests.
    """
    answered = np.flatnonzero((split == part) & (corpus.kind == target_kind(corpus)))
    if len(answered) > size:
        answered = np.sort(np.random.default_rng(seed).choice(answered, size, replace=False))
    return Requests.of(corpus, answered.astype(np.int64))


def target_kind(corpus: Corpus) -> int:
    """Which event a system is asked to foresee: the strongest kind that the log has."""
    return int(corpus.kind.max()) if len(corpus.kind) else EVENT_KINDS.index("purchase")


def late(corpus: Corpus, split: NDArray[np.int8], share: float) -> NDArray[np.bool_]:
    """(E,) whether an event lies in the last `share` of the training period, or where the log has no clock in the last
    `share` of its user's history. Late events have a long past behind them, as searches have when a model serves."""
    if not 0 < share <= 1:
        raise UserError("a share lies between 0 and 1", value=share)
    if corpus.has_clock:
        return corpus.time >= np.quantile(corpus.time[split == TRAIN], 1 - share)
    place = np.arange(len(corpus.user)) - corpus.offsets[corpus.user]
    return place >= (1 - share) * np.diff(corpus.offsets)[corpus.user]
