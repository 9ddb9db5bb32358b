"""What is known of the user that does not come from the log: attributes such as age or household size.

A vocabulary of name and value is made when a model is trained and saved with it. A value that only one user has says
who it is, not what the user is like: it counts as unknown, as does what a loaded model never saw.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.context.history import HistorySlots
from onesearch.corpus import Corpus, Requests
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

UNKNOWN: Final = 1
"""The number of a value outside the vocabulary; 0 pads, and the vocabulary follows."""

VALUES: Final = 2**16
"""At most so many values, the most frequent ones."""

FILE: Final = "profile.json"


class Profile:
    """`profile_values` (Q, A) int64: the numbers of the user's attributes, 0 where there are fewer."""

    positions = 1

    def __init__(self, corpus: Corpus, vocabulary: list[tuple[str, str]]) -> None:
        self.vocabulary = vocabulary
        known = pl.DataFrame(vocabulary, schema={"name": pl.String, "value": pl.String}, orient="row")
        known = known.with_row_index("number", UNKNOWN + 1)
        held = _attributes(corpus).join(known, on=("name", "value"), how="left", maintain_order="left")
        user, number = held["user"].to_numpy(), held["number"].cast(pl.Int64).fill_null(UNKNOWN).to_numpy()
        count = np.bincount(user, minlength=len(corpus.users))
        # one row more: that of users whom the log does not know
        self._values = np.zeros((len(corpus.users) + 1, max(int(count.max(initial=0)), 1)), np.int32)
        place = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        self._values[user, place] = number

    @classmethod
    def fit(cls, corpus: Corpus) -> Profile:
        """Make the vocabulary of a corpus.

        Raises:
            UserError: no user has an attribute.
        """
        pairs = _attributes(corpus).group_by("name", "value").agg(users=pl.col("user").n_unique())
        if pairs.is_empty():
            raise UserError(
                "the view 'profile' needs what the log does not have: users with attributes",
                place=corpus.folder / "users.parquet",
                value="attributes",
                remedy="give the users attributes and run `onesearch prepare` again, or leave 'profile' out of `views`",
            )
        shared = pairs.filter(pl.col("users") > 1).sort(["users", "name", "value"], descending=[True, False, False])
        return cls(corpus, shared.head(VALUES).select("name", "value").rows())

    @classmethod
    def load(cls, corpus: Corpus, folder: Path) -> Profile:
        """With the vocabulary that `save` wrote."""
        return cls(corpus, [(name, value) for name, value in read_json(folder / FILE)])

    def save(self, folder: Path) -> None:
        """Write `profile.json`."""
        write_json(folder / FILE, self.vocabulary)

    def sizes(self) -> dict[str, Any]:
        return {"values": len(self.vocabulary) + UNKNOWN + 1}

    def read(self, requests: Requests, slots: HistorySlots) -> dict[str, NDArray[Any]]:
        return {"profile_values": self._values[requests.user].astype(np.int64)}


def _attributes(corpus: Corpus) -> pl.DataFrame:
    """user, name and value of every attribute, users in order."""
    rows = corpus.users.select("attributes").with_row_index("user").explode("attributes")
    return rows.drop_nulls("attributes").unnest("attributes").drop_nulls(["name", "value"])
