"""Batches of lists with labels for the heads of a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from onesearch.context.batch import EncodedQueries
from onesearch.corpus import Corpus, Requests
from onesearch.reward.features import RewardFeatures
from onesearch.reward.levels import BOUGHT, CLICKED, Interactions, category_prefixes, shared_category
from training.batches import ENCODED
from training.lists import CandidateLists, Ints

LABELS: Final = ("click", "both", "relevance")


@dataclass(frozen=True)
class Judged:
    """Graded relevance: queries (G) with up to K items each (G, K), -1 behind them, and grades (G, K) from 0 to 1."""

    queries: list[str]
    items: Ints
    grades: NDArray[np.float32]

    @classmethod
    def of(cls, corpus: Corpus, width: int) -> Judged:
        """The corpus's judgements, a query's in lists of at most `width`; grades are scaled to the corpus's range."""
        known = corpus.items.select("item_id").with_row_index("item")
        rows = corpus.relevance.join(known, on="item_id", how="inner", maintain_order="left")
        if not len(rows):
            return cls([], np.zeros((0, width), np.int64), np.zeros((0, width), np.float32))
        rows = rows.with_columns(place=pl.int_range(pl.len()).over("query"))
        rows = rows.with_columns(part=pl.col("place") // width, place=pl.col("place") % width)
        rows = rows.with_columns(row=pl.struct("query", "part").rank("dense").cast(pl.Int64) - 1)
        lists = rows.select("row", "query").unique("row").sort("row")
        items = np.full((len(lists), width), -1, np.int64)
        grades = np.zeros((len(lists), width), np.float32)
        at = rows["row"].to_numpy(), rows["place"].to_numpy()
        grade = rows["grade"].to_numpy()
        items[at] = rows["item"].to_numpy()
        grades[at] = (grade - grade.min()) / max(float(grade.max() - grade.min()), 1e-9)
        return cls(lists["query"].to_list(), items, grades)

    def requests(self, corpus: Corpus, rows: Ints) -> Requests:
        """Requests of nobody in particular, at the end of the log, with some of the queries."""
        nobody = np.zeros(len(rows), np.int64)
        latest = int(corpus.time.max()) if len(corpus.time) else 0
        return Requests(
            event=nobody - 1,
            user=nobody.astype(np.int32),
            target=self.items[rows, 0].astype(np.int32),
            time=nobody + latest,
            history_start=nobody,
            history_end=nobody,
            place=nobody.astype(np.int32) - 1,
            device=nobody.astype(np.int32) - 1,
            query=[self.queries[row] for row in rows],
        )


class RewardBatches:
    """Collates numbers of examples into arguments of `RewardNetwork.forward`: e >= 0 is the list of event e, and
    -1 - g is judged list g."""

    def __init__(
        self,
        features: RewardFeatures,
        lists: CandidateLists,
        interactions: Interactions,
        judged: Judged,
        events: Ints,
    ) -> None:
        """`events`: of all examples that will be asked for; their distinct queries are encoded once."""
        corpus = features.builder.corpus
        self.features, self.lists, self.judged, self._interactions = features, lists, judged, interactions
        self._prefixes = category_prefixes(corpus)
        logged = (corpus.meant[query] if query >= 0 else "" for query in np.unique(corpus.query[events]))
        texts = list(dict.fromkeys([*logged, *judged.queries]))
        self._row = {text: row for row, text in enumerate(texts)}
        self._queries = EncodedQueries.joined(
            [features.builder.encode(texts[start : start + ENCODED]) for start in range(0, max(len(texts), 1), ENCODED)]
        )

    def knowing(self, events: Ints) -> RewardBatches:
        """The same, with the items' taste vectors made of these events."""
        other = copy(self)
        other.features = self.features.knowing(events)
        return other

    def __call__(self, examples: Sequence[int]) -> dict[str, Any]:
        numbers = np.asarray(examples, np.int64)
        logged, judged = numbers[numbers >= 0], -1 - numbers[numbers < 0]
        parts = []
        if len(logged):
            parts.append(self._logged(logged))
        if len(judged):
            parts.append(self._judged(judged))
        return _joined([one | {"labels": labels[0], "weights": labels[1]} for one, labels in parts])

    def requests(self, events: Ints) -> tuple[Requests, Ints, NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
        """Requests of events (Q,), their items (Q, K), levels (Q, K), labels (Q, K, 3), and the network's arguments."""
        corpus = self.features.builder.corpus
        requests = Requests.of(corpus, events)
        queries = self._queries.take(np.array([self._row[query] for query in requests.query]))
        read = self.features.builder.inputs(requests, queries)
        items = self.lists(requests, read[1].item)
        levels = self._interactions.levels(requests, items)
        given = self.features.inputs(requests, items, queries, read)
        labels = np.stack(
            [levels >= CLICKED, levels >= BOUGHT, self._relevance(requests, items, given["cross"].numpy())], -1
        ).astype(np.float32)
        return requests, items, levels, labels, given

    def _logged(self, events: Ints) -> tuple[dict[str, Any], tuple[torch.Tensor, torch.Tensor]]:
        *_, labels, given = self.requests(events)
        weights = np.ones_like(labels)
        weights[..., LABELS.index("relevance")] = not len(self.judged.queries)
        return given, (torch.from_numpy(labels), torch.from_numpy(weights))

    def _judged(self, rows: Ints) -> tuple[dict[str, Any], tuple[torch.Tensor, torch.Tensor]]:
        requests = self.judged.requests(self.features.builder.corpus, rows)
        queries = self._queries.take(np.array([self._row[query] for query in requests.query]))
        items = self.judged.items[rows]
        labels = np.zeros((*items.shape, len(LABELS)), np.float32)
        weights = np.zeros_like(labels)
        labels[..., LABELS.index("relevance")] = self.judged.grades[rows]
        weights[..., LABELS.index("relevance")] = 1
        given = self.features.inputs(requests, items, queries)
        return given, (torch.from_numpy(labels), torch.from_numpy(weights))

    def _relevance(self, requests: Requests, items: Ints, cross: NDArray[np.float32]) -> NDArray[np.float32]:
        """(Q, K) what stands for graded relevance: half how the texts agree, half the share of the category path that
        the item has in common with the one that the search led to (ours)."""
        text = np.clip(cross[..., :2].mean(-1), 0, 1)
        wanted = self._prefixes[requests.target][:, None]
        alike = shared_category(self._prefixes[np.maximum(items, 0)], wanted)
        return np.where((wanted >= 0).any(-1), (text + alike) / 2, text).astype(np.float32)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of all parts; shorter ones are padded."""
    if len(parts) == 1:
        return parts[0]
    padding = {"items": -1, "slot_items": -1}
    found: dict[str, Any] = {}
    for name in parts[0]:
        if name == "views":
            found[name] = _joined([part[name] for part in parts])
            continue
        tensors = [part[name] for part in parts]
        sizes = [max(one.shape[axis] for one in tensors) for axis in range(1, tensors[0].ndim)]
        padded = []
        for one in tensors:
            whole = one.new_full((len(one), *sizes), padding.get(name, 0))
            whole[tuple(slice(size) for size in one.shape)] = one
            padded.append(whole)
        found[name] = torch.cat(padded)
    return found
