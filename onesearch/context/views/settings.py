"""Which views of the user a model reads, as a training's YAML says."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from onesearch.errors import UserError

VIEWS: Final = ("uid", "queries", "long", "profile", "time", "place", "device")
HISTORIES: Final = ("relevant", "recent", "none")
UIDS: Final = ("nearest", "paper")
LONGS: Final = ("qformer", "lrea")


@dataclass(frozen=True)
class ViewSettings:
    """What is read of the user.

    Attributes:
        history: how the history slots are chosen: most relevant to the query first, latest first, or none at all. With
            none, the vectors of the user's taste are empty too.
        views: what is read besides, of `VIEWS`.
        uid: how the semantic IDs that stand for the user come about, of `UIDS`.
        past_queries: the user's last queries that are read.
        long: how the whole past becomes a few soft tokens, of `LONGS`.
        long_tokens: how many.

    Raises:
        UserError: an unknown name, a view twice, or a number below 1.
    """

    history: str = "relevant"
    views: tuple[str, ...] = ()
    uid: str = "nearest"
    past_queries: int = 8
    long: str = "qformer"
    long_tokens: int = 3

    def __post_init__(self) -> None:
        _known("history", [self.history], HISTORIES)
        _known("views", self.views, VIEWS)
        _known("uid", [self.uid], UIDS)
        _known("long", [self.long], LONGS)
        if len(set(self.views)) < len(self.views):
            raise UserError("a view is named twice", place="views", value=list(self.views), remedy="name it once")
        for name in ("past_queries", "long_tokens"):
            if getattr(self, name) < 1:
                remedy = "give at least 1, or leave the view out of `views`"
                raise UserError("too few", place=name, value=getattr(self, name), remedy=remedy)


def _known(place: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"known: {', '.join(known)}" + (f"; did you mean {near[0]!r}?" if near else "")
            raise UserError("unknown name", place=place, value=name, remedy=remedy)
