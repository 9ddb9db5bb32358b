"""Mistakes a user can mend, told in one line: what is wrong, where, which value, and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave. The command line prints it as one line and exits with 2.

    >>> print(UserError("unknown item", place="events.jsonl row 7 column item_id", value="X1", remedy="add it"))
    events.jsonl row 7 column item_id: unknown item: 'X1' (add it)
    """

    def __init__(self, problem: str, *, place: object = None, value: object = None, remedy: str | None = None) -> None:
        self.problem, self.place, self.value, self.remedy = problem, place, value, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        place = "" if self.place is None else f"{self.place}: "
        value = "" if self.value is None else f": {_shorten(self.value)}"
        remedy = "" if self.remedy is None else f" ({self.remedy})"
        return f"{place}{self.problem}{value}{remedy}"


def unknown(
    problem: str, value: object, known: Iterable[str], place: object = None, otherwise: str | None = None
) -> UserError:
    """The mistake of a name that does not exist, with the nearest of those that do; without one, all of them or
    `otherwise`.

    >>> print(unknown("unknown reward", "bougth", ["bought", "prefix"], "rewards"))
    rewards: unknown reward: 'bougth' (did you mean 'bought'?)
    """
    names = list(known)
    near = difflib.get_close_matches(str(value), names, 1)
    remedy = f"did you mean {near[0]!r}?" if near else otherwise or f"known: {', '.join(names)}"
    return UserError(problem, place=place, value=value, remedy=remedy)


def _shorten(value: object, width: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 1]}… ({len(text):,} characters)"
