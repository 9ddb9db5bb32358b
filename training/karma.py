"""What KARMA's losses are told of the items that followed: texts, how common they are, what was shown beside them.

See `onesearch.model.karma` for the losses and the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.context.batch import ContextBuilder
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.corpus import Corpus
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.embed.pictures import VIEWS
from onesearch.embed.store import stored_vectors
from onesearch.errors import UserError
from onesearch.run import Run
from onesearch.semantic_ids import views_of

TEXT_TOKENS = 16
"""A title is cut after so many tokens, its end among them."""

SHOWN = 16
"""Items that a request showed and that nobody took, the first ones in the order of the log."""


MOST_SOFT_TOKENS = 4
"""As many as our specification of the paper tries."""


def check_weights(options: Any) -> None:
    """Raises a `UserError` for options of `training/sft.py` that cannot be, or have nothing to weigh."""
    for name in ("interest", "action", "generate", "reconstruct", "regress", "hard_negatives"):
        if getattr(options, name) < 0:
            raise UserError(
                "must not be negative", place=name, value=getattr(options, name), remedy="0 switches it off"
            )
    if not 1 <= options.soft_tokens <= MOST_SOFT_TOKENS:
        remedy = f"use 1 to {MOST_SOFT_TOKENS}"
        raise UserError("not a number of soft tokens", place="soft_tokens", value=options.soft_tokens, remedy=remedy)
    for name in ("reconstruct", "regress"):
        if (value := getattr(options, name)) and not options.interest:
            remedy = "switch it on, for instance interest: 64"
            raise UserError("there is no interest vector to decode", place=name, value=value, remedy=remedy)
    if options.interest and not (options.action or options.reconstruct or options.regress):
        remedy = "give `action`, `reconstruct` or `regress` a weight"
        raise UserError("nothing teaches the interest vector", place="interest", value=options.interest, remedy=remedy)


class Told:
    """Tensors by target, gathered for each batch.

    Args:
        events: the events to learn from, which tell how common a target is.
        training: (E,) bool, the events that may be looked at for what was shown.
        vectors: (N, F) frozen vectors of the items, for `regress`.
    """

    def __init__(
        self,
        builder: ContextBuilder,
        events: NDArray[np.int64],
        training: NDArray[np.bool_],
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        corpus, self._vectors = builder.corpus, vectors
        self._codes, self._item = builder.codes, corpus.item
        self._text = item_tokens(builder.tokenizer, corpus.items["title"].to_list())
        count = np.bincount(corpus.item[events], minlength=len(corpus.items)).clip(min=1)
        self._log_chance = np.log(count / len(events)).astype(np.float32)
        self._shown = Shown(corpus, training)

    def __call__(self, events: NDArray[np.int64]) -> dict[str, Tensor]:
        """`text` (B, T), `log_chance` (B,); `shown_codes` (B, S, L) where the log has impressions, and `vector` (B, F)
        where there are vectors."""
        item = self._item[events]
        text = self._text[item]
        found = {"text": text[:, : int((text > 0).sum(1).max())], "log_chance": self._log_chance[item]}
        if self._shown.any:
            shown = self._shown(events)
            found["shown_codes"] = np.where(shown[..., None] >= 0, self._codes[shown], -1)
        if self._vectors is not None:
            found["vector"] = np.asarray(self._vectors[item], np.float32)
        return {name: torch.from_numpy(array) for name, array in found.items()}


def frozen_vectors(run: Run, items: int) -> NDArray[np.float32]:
    """(N, F) unit vectors that `regress` is to tell: of the items' pictures where the run has some (zeros for an item
    without any), else of their texts.

    Raises:
        UserError: the run has neither, or they are of another catalogue.
    """
    pictures = run.folder / VIEWS
    return views_of(pictures, items).item_vectors() if pictures.exists() else stored_vectors(pictures.parent, items)


def item_tokens(tokenizer: QueryTokenizer, titles: Sequence[str]) -> NDArray[np.int32]:
    """(N, TEXT_TOKENS) the tokens of N titles, then the token that begins an answer, for the end; 0 pads."""
    ids, offsets = tokenizer.encode(titles, TEXT_TOKENS - 1)
    length = np.diff(offsets)
    text = np.full((len(titles), TEXT_TOKENS), tokenizer.pad, np.int32)
    place = np.arange(TEXT_TOKENS)
    text[place < length[:, None]] = ids
    text[np.arange(len(titles)), length] = tokenizer.begin
    return text


class Shown:
    """Items that were shown in answer to the same request, the query of one session, and that got no stronger event."""

    def __init__(self, corpus: Corpus, training: NDArray[np.bool_]) -> None:
        self._corpus = corpus
        shown = np.concatenate(list(_events(corpus, training, impressions=True)))
        self.any = len(shown) > 0
        self._known, group = np.unique(self._corpus.searches(shown), return_inverse=True)
        width = len(corpus.items)
        pair = group * width + corpus.item[shown]
        _, first = np.unique(pair, return_index=True)  # an item that was shown twice counts once
        kept = np.sort(first[~np.isin(pair[first], self._taken(training))])
        order = kept[np.argsort(group[kept], kind="stable")]
        self._items = corpus.item[shown][order]
        self._edges = np.searchsorted(group[order], np.arange(len(self._known) + 1))

    def __call__(self, events: NDArray[np.int64]) -> NDArray[np.int32]:
        """(B, S) items beside each event, -1 in empty places; S is at least 1 and at most `SHOWN`."""
        group, asked = self._groups(events)
        start = self._edges[group]
        count = np.where(asked, self._edges[group + 1] - start, 0)
        place = np.arange(min(max(int(count.max(initial=0)), 1), SHOWN))
        there = place < count[:, None]
        where = np.where(there, start[:, None] + place, 0)
        items = self._items[where] if len(self._items) else np.zeros(where.shape, np.int32)
        return np.where(there, items, -1).astype(np.int32)

    def _groups(self, events: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The place of each event's request among those that showed something, and whether it is there."""
        request = self._corpus.searches(events)
        group = np.searchsorted(self._known, request).clip(max=max(len(self._known) - 1, 0))
        return group, self._known[group] == request

    def _taken(self, training: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The pairs of request and item that got a stronger event, of requests that showed something."""
        found = [np.zeros(0, np.int64)]
        for events in _events(self._corpus, training, impressions=False) if self.any else ():
            group, asked = self._groups(events)
            found.append((group * len(self._corpus.items) + self._corpus.item[events])[asked])
        return np.concatenate(found)


def _events(corpus: Corpus, training: NDArray[np.bool_], impressions: bool) -> Iterator[NDArray[np.int64]]:
    """The training events that are impressions, or that are not, a piece of the log at a time."""
    yield np.zeros(0, np.int64)
    for span in corpus.spans():
        shown = corpus.kind[span] == EVENT_KINDS.index("impression")
        yield np.flatnonzero(training[span] & (shown == impressions)) + span.start
