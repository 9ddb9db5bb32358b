"""Lists of items with labels: what the ranking evaluation lets scorers put in order.

They come from the impressions of a log, each list what one search showed; where a log has none, from what the systems
return, each list the union for one search; or from TREC run files and qrels (`eval.trec`). The items of a list come in
an order that is drawn: neither the order shown nor the system that found an item may decide between equal scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import TEST, TRAIN, VALID, Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError

PARTS: Final = {"train": TRAIN, "valid": VALID, "test": TEST}
ALL: Final = "all"


@dataclass(frozen=True)
class RankedLists:
    """Q lists of up to K items.

    Attributes:
        items: (Q, K) int32, -1 in empty places, which come last. labels: (Q, K) int32, 0 for wrong and in empty places.
        user: (Q,) int64 whose list it is. queries: Q ids. item_ids: N ids.
        outside: (Q,) int64 how many right answers are known that are not in the list.
        about: what the lists are, in a sentence.
        requests: the searches, None where only a file knows them. Their targets are blank.
        one_answer: whether exactly one item of the catalogue is right, so that the probability that a model gives to an
            item is the probability that its label is 1.
    """

    items: NDArray[np.int32]
    labels: NDArray[np.int32]
    user: NDArray[np.int64]
    queries: list[str]
    item_ids: Sequence[str]
    outside: NDArray[np.int64]
    about: str
    requests: Requests | None = None
    one_answer: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def there(self) -> NDArray[np.bool_]:
        """(Q, K) the places that are not empty."""
        return self.items >= 0

    @property
    def right(self) -> NDArray[np.bool_]:
        """(Q, K) the right answers."""
        return self.labels > 0

    @property
    def row(self) -> NDArray[np.int64]:
        """(P,) the list of each pair."""
        return np.nonzero(self.there)[0]

    def counts(self) -> dict[str, int]:
        """How much there is of what, for the report."""
        right, inside = self.right.any(axis=1), self.there
        return {
            "lists": len(self),
            "users": len(np.unique(self.user)),
            "pairs": int(inside.sum()),
            "right": int(self.right.sum()),
            "lists_without_right": int((~right).sum()),
            "lists_all_right": int((right & (self.right == inside).all(axis=1)).sum()),
            "right_outside": int(self.outside.sum()),
        }


def from_impressions(
    corpus: Corpus, split: NDArray[np.int8], part: str, size: int, label: str = "click", seed: int = 0
) -> RankedLists:
    """What searches showed: one list a user, session and query with impressions.

    What was clicked or bought without a recorded impression was shown as well.

    Args:
        part: "train", "valid", "test" or "all" of the split. size: at most so many lists, drawn uniformly.
        label: an item is right if this, or something stronger, happened to it in the same search.

    Raises:
        UserError: the part shows nothing, or nothing of what it shows is right.
    """
    at = np.flatnonzero(split == PARTS[part]) if part != ALL else np.arange(len(split))
    _, search = np.unique(corpus.searches(at), return_inverse=True)
    shown = np.flatnonzero(np.bincount(search[corpus.kind[at] == EVENT_KINDS.index("impression")]) > 0)
    if len(shown) == 0:
        remedy = "choose another --part, or --lists union"
        raise UserError("no impressions", place=corpus.folder, value=f"--part {part}", remedy=remedy)
    if len(shown) > size:
        shown = np.sort(np.random.default_rng(seed).choice(shown, size, replace=False))
    number = np.full(int(search.max()) + 1, -1)
    number[shown] = np.arange(len(shown))
    at, row = at[number[search] >= 0], number[search][number[search] >= 0]
    first = np.full(len(shown), len(split), np.int64)
    np.minimum.at(first, row, at)
    right = corpus.kind[at] >= EVENT_KINDS.index(label)
    requests = _blank(Requests.of(corpus, first))
    items, labels = _lists(row, corpus.item[at], right.astype(np.int32), len(shown), len(corpus.items), seed)
    lists = RankedLists(
        items=items,
        labels=labels,
        user=requests.user.astype(np.int64),
        queries=[f"q{event}" for event in first.tolist()],
        item_ids=corpus.items["item_id"].to_list(),
        outside=np.zeros(len(shown), np.int64),
        about=f"what {len(shown):,} searches of the part {part!r} showed; right is what then had a {label} or more",
        requests=requests,
    )
    return _with_labels(lists, corpus.folder, f"--label {label}", "choose a weaker --label, or another --part")


def from_union(
    found: Mapping[str, NDArray[np.int32]], requests: Requests, corpus: Corpus, seed: int = 0, part: str = "test"
) -> RankedLists:
    """For each search everything that some system returned; right is the item that followed.

    Args:
        found: per system (Q, k) items, -1 where there are fewer.

    Raises:
        UserError: no system returned what followed any search.
    """
    depth = max(items.shape[1] for items in found.values())
    every = np.concatenate(list(found.values()), axis=1)
    row, column = np.nonzero(every >= 0)
    item = every[row, column]
    right = (item == requests.target[row]).astype(np.int32)
    items, labels = _lists(row, item, right, len(requests), len(corpus.items), seed)
    lists = RankedLists(
        items=items,
        labels=labels,
        user=requests.user.astype(np.int64),
        queries=[f"q{event}" for event in requests.event.tolist()],
        item_ids=corpus.items["item_id"].to_list(),
        outside=(labels.sum(axis=1) == 0).astype(np.int64),
        about=(
            f"no impressions: {len(requests):,} searches of the part {part!r}, a list is the union of the {depth} best "
            f"of {', '.join(found)}; right is the one item that followed, if it is among them"
        ),
        requests=_blank(requests),
        one_answer=True,
    )
    return _with_labels(lists, corpus.folder, None, "the systems return nothing right: train longer, or raise --depth")


def from_pairs(
    row: NDArray[np.int64],
    item: NDArray[np.int32],
    label: NDArray[np.int32],
    queries: list[str],
    item_ids: Sequence[str],
    user: NDArray[np.int64],
    outside: NDArray[np.int64],
    about: str,
    place: object,
    seed: int = 0,
) -> RankedLists:
    """Lists from P pairs of a list and an item, for files.

    Args:
        row, item, label: (P,). queries, user, outside: Q of them. place: of the labels, for messages.

    Raises:
        UserError: no pair is right.
    """
    items, labels = _lists(row, item, label, len(queries), len(item_ids), seed)
    lists = RankedLists(items, labels, user, queries, item_ids, outside, about)
    return _with_labels(lists, place, None, "are the queries and items of the runs those of the qrels?")


def _lists(
    row: NDArray[np.int64], item: NDArray[np.int32], label: NDArray[np.int32], lists: int, items: int, seed: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(Q, K) items and labels from P pairs; of a pair that occurs again the largest label counts."""
    key, first = np.unique(row * np.int64(items) + item, return_inverse=True)
    largest = np.zeros(len(key), np.int32)
    np.maximum.at(largest, first, label)
    of = key // items
    order = np.lexsort((np.random.default_rng(seed).random(len(key)), of))
    size = np.bincount(of, minlength=lists)
    place = np.arange(len(key)) - np.repeat(np.cumsum(size) - size, size)
    found = np.full((lists, int(size.max(initial=1))), -1, np.int32)
    labels = np.zeros(found.shape, np.int32)
    found[of, place] = key[order] % items
    labels[of, place] = largest[order]
    return found, labels


def _blank(requests: Requests) -> Requests:
    """The searches without what followed them, so that no scorer can look."""
    return replace(requests, target=np.full(len(requests), -1, np.int32))


def _with_labels(lists: RankedLists, place: object, value: str | None, remedy: str) -> RankedLists:
    if not lists.right.any():
        raise UserError(f"no list of {len(lists):,} holds anything right", place=place, value=value, remedy=remedy)
    return lists
