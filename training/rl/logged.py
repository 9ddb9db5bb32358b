"""What a log has shown: lists in answer to searches, what users did with each item, and what a rank hides.

The lists are the corpus's own impressions, or a Parquet file of them (`--shown FILE`), with one row for each item of a
list: `event` (row number in the corpus's log of what ended the search: a purchase, say), `item_id`, `rank` from 0, and
`kind`, the strongest of impression, click, cart and purchase that the user did with the item. `python -m eval.clicks`
writes such a file.

What is not looked at cannot be clicked, so that clicks praise whatever stood on top. Weighted by the inverse of the
chance to look, clicks are on average what they would be if everything was looked at (Joachims, Swaminathan, Schnabel:
Unbiased Learning-to-Rank with Biased Feedback, WSDM 2017, https://arxiv.org/abs/1608.04468): where the chance is right,
and as far as no weight is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError

COLUMNS: Final = ("event", "item_id", "rank", "kind")


@dataclass(frozen=True)
class Shown:
    """(B, S) items of the lists behind B events, in the order of their ranks, -1 in empty places; their ranks from 0;
    and the strongest event of each as a position in `EVENT_KINDS`."""

    items: NDArray[np.int64]
    ranks: NDArray[np.int64]
    kinds: NDArray[np.int64]


class LoggedLists:
    """Finds what was shown in answer to the search behind an event: that of its session with its query.

    Args:
        event, item, rank, kind: (n,) one shown item each; event is one of the search.
        most: S, at most so many items of a list, the first ones.
        known: items that can be in a list; by default all.
    """

    def __init__(
        self,
        corpus: Corpus,
        event: NDArray[np.integer],
        item: NDArray[np.integer],
        rank: NDArray[np.integer],
        kind: NDArray[np.integer],
        most: int,
        known: NDArray[np.integer] | None = None,
    ) -> None:
        self.corpus, self.most = corpus, most
        search = corpus.searches(event)
        kept = np.ones(len(item), bool) if known is None else np.isin(item, known)
        order = np.lexsort((rank[kept], search[kept]))
        self._of, self._item, self._rank, self._kind = (
            one[kept][order].astype(np.int64) for one in (search, item, rank, kind)
        )

    @classmethod
    def of(
        cls, corpus: Corpus, events: NDArray[np.int64], most: int, known: NDArray[np.integer] | None = None
    ) -> LoggedLists:
        """The impressions of a corpus.

        Args:
            events: (n,) the events that may be looked at.

        Raises:
            UserError: none of them is an impression.
        """
        search = corpus.searches(events)
        order = np.lexsort((corpus.kind[events], corpus.item[events], search))
        events, search = events[order], search[order]
        item = corpus.item[events]
        other = (search[1:] != search[:-1]) | (item[1:] != item[:-1])
        first, last = np.append(True, other), np.append(other, True)  # of each item in a search, weakest event first
        shown = corpus.kind[events[first]] == EVENT_KINDS.index("impression")
        if not shown.any():
            remedy = "use another rollout, a log with impressions, or a file of them (--shown)"
            raise UserError("nothing was shown in this log", place=corpus.folder, remedy=remedy)
        one, kind = events[first][shown], corpus.kind[events[last]][shown]
        return cls(corpus, one, corpus.item[one], corpus.rank[one], kind, most, known)

    @classmethod
    def read(cls, path: Path, corpus: Corpus, most: int, known: NDArray[np.integer] | None = None) -> LoggedLists:
        """A Parquet file of lists; see the module.

        Raises:
            UserError: it cannot be read, lacks a column, or has a row that cannot be.
        """
        try:
            rows = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            remedy = f"give a Parquet file with the columns {', '.join(COLUMNS)}"
            raise UserError(f"cannot be read: {str(error).splitlines()[0]}", place=path, remedy=remedy) from error
        for column in COLUMNS:
            if column not in rows.columns:
                raise UserError("no such column", place=path, value=column, remedy=f"it needs {', '.join(COLUMNS)}")
        ids, events = corpus.items["item_id"], len(corpus.user)
        number = pl.DataFrame({"item_id": ids, "item": np.arange(len(ids))})
        rows = rows.select(COLUMNS).join(number, on="item_id", how="left", maintain_order="left")
        wrong = {
            "event": (~pl.col("event").is_between(0, events - 1), f"events are numbered from 0 to {events - 1}"),
            "item_id": (pl.col("item").is_null(), "lists hold items of the catalogue"),
            "rank": (pl.col("rank") < 0, "ranks count from 0"),
            "kind": (~pl.col("kind").is_in(EVENT_KINDS), f"known: {', '.join(EVENT_KINDS)}"),
        }
        for column, (is_wrong, remedy) in wrong.items():
            found = rows.with_row_index("row").filter(is_wrong.fill_null(True) | pl.col(column).is_null()).head(1)
            if len(found):
                place = f"{path}: row {found['row'][0] + 1}: {column}"
                raise UserError("cannot be", place=place, value=found[column][0], remedy=remedy)
        kind = rows["kind"].replace_strict(EVENT_KINDS, list(range(len(EVENT_KINDS)))).to_numpy()
        event, item, rank = (rows[name].to_numpy() for name in ("event", "item", "rank"))
        return cls(corpus, event, item, rank, kind, most, known)

    def __call__(self, events: NDArray[np.int64]) -> Shown:
        """The lists behind B events."""
        search = self.corpus.searches(events)
        start, stop = np.searchsorted(self._of, search), np.searchsorted(self._of, search, side="right")
        place = start[:, None] + np.arange(self.most)
        there = place < stop[:, None]
        place = np.where(there, place, 0)
        return Shown(*(np.where(there, values[place], -1) for values in (self._item, self._rank, self._kind)))


def examination(ranks: NDArray[np.integer], eta: float) -> NDArray[np.float64]:
    """(...) the chance that a user looks at ranks (...) from 0: (1 + rank)^-eta, as position-based models have it."""
    return (1.0 + np.maximum(ranks, 0)) ** -eta


def inverse_propensity(chance: NDArray[np.floating], most: float) -> NDArray[np.float64]:
    """(...) weights 1 / chance, at most `most`."""
    return np.minimum(1 / np.maximum(chance, 1e-12), most)
