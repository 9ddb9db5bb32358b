"""Lists with labels, and the scores of systems, from TREC run files and qrels.

A list is everything that some run returned for a query. As in trec_eval, what the qrels do not judge is wrong; a run
that did not return an item of a list ranks it below all it returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eval.ranked_lists import RankedLists, from_pairs
from eval.trec import read_qrels, read_run, read_users
from onesearch.errors import UserError


def read_lists(
    runs: Sequence[Path], qrels: Path, users: Path | None = None, seed: int = 0
) -> tuple[RankedLists, dict[str, NDArray[np.float64]], list[str]]:
    """The lists, (Q, K) scores of each run by its name, -inf where it did not return an item, and remarks.

    Args:
        users: file of lines `query user`; without one every query is a user of its own.

    Raises:
        UserError: a file that is broken, two runs of one name, or no query that is both in a run and in the qrels.
    """
    returned: dict[str, pl.DataFrame] = {}
    for path in runs:
        rows = read_run(path)
        name = str(rows["system"][0])
        if name in returned:
            raise UserError("two runs of one name", place=path, value=name, remedy="the last field names the system")
        returned[name] = rows
    judged = read_qrels(qrels)
    queries = sorted(set().union(*(rows["query"].unique() for rows in returned.values())) & {*judged["query"]})
    if not queries:
        raise UserError("no query of the runs is judged", place=qrels, remedy="are the runs those of these qrels?")
    remarks = _unjudged(returned, len(queries), qrels)
    every = pl.concat([rows.select("query", "item") for rows in returned.values()]).unique(maintain_order=True)
    every = every.join(judged, on=["query", "item"], how="left", maintain_order="left")
    number = pl.DataFrame({"query": queries, "row": np.arange(len(queries))})
    every = every.join(number, on="query", how="inner", maintain_order="left")
    item_ids = every["item"].unique().sort()
    items = pl.DataFrame({"item": item_ids, "place": np.arange(len(item_ids), dtype=np.int32)})
    every = every.join(items, on="item", how="left", maintain_order="left")
    unjudged = int(every["label"].null_count())
    if unjudged:
        remarks.append(f"{unjudged:,} of {len(every):,} items of the lists are not judged and count as wrong")
    outside = judged.filter(pl.col("label") > 0).join(every, on=["query", "item"], how="anti")
    outside = outside.join(number, on="query", how="inner")
    lists = from_pairs(
        every["row"].to_numpy(),
        every["place"].to_numpy(),
        every["label"].fill_null(0).to_numpy(),
        queries,
        item_ids.to_list(),
        _users(users, queries),
        np.bincount(outside["row"].to_numpy(), minlength=len(queries)),
        f"{len(queries):,} judged queries of {qrels}; a list is what {', '.join(returned)} returned",
        qrels,
        seed,
    )
    return lists, {name: _scores(rows, lists, number, items) for name, rows in returned.items()}, remarks


def _unjudged(returned: dict[str, pl.DataFrame], queries: int, qrels: Path) -> list[str]:
    """What to say of queries that are left out."""
    every = len(pl.concat([rows["query"].unique() for rows in returned.values()]).unique())
    return [f"{every - queries:,} queries of the runs are not in {qrels} and left out"] if every > queries else []


def _scores(rows: pl.DataFrame, lists: RankedLists, number: pl.DataFrame, items: pl.DataFrame) -> NDArray[np.float64]:
    """(Q, K) scores of one run, by the places of the lists."""
    known = rows.join(number, on="query", how="inner").join(items, on="item", how="left")
    width = np.int64(len(items))
    row, _ = np.nonzero(lists.there)
    keys = row * width + lists.items[lists.there]
    order = np.argsort(keys)
    wanted = known["row"].to_numpy() * width + known["place"].to_numpy()
    flat = np.full(len(keys), -np.inf)
    flat[order[np.searchsorted(keys, wanted, sorter=order)]] = known["score"].to_numpy()
    scores = np.full(lists.items.shape, -np.inf)
    scores[lists.there] = flat
    return scores


def _users(path: Path | None, queries: list[str]) -> NDArray[np.int64]:
    if path is None:
        return np.arange(len(queries), dtype=np.int64)
    known = read_users(path)
    for query in queries:
        if query not in known:
            raise UserError("a query without a user", place=path, value=query, remedy="give each query a line")
    return np.unique([known[query] for query in queries], return_inverse=True)[1].astype(np.int64)
