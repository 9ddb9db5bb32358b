"""What alignment does to searches and visits it has not seen: recall with the frozen and with the aligned vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from onesearch.corpus import TRAIN, VALID, Corpus, Requests, sample_requests
from onesearch.embed import TextEncoder
from onesearch.embed.alignment import Alignment
from training.neighbours import CUTS, ranks, recalls
from training.pairs import Ints, interactions, together


def held_out(
    corpus: Corpus,
    split: NDArray[np.int8],
    text: Ints,
    encoder: TextEncoder,
    raw: NDArray[np.float32],
    alignment: Alignment,
    size: int,
    seed: int,
) -> dict[str, float]:
    """Recall of validation searches (dense, query to item) and of items bought in one visit, before and after.

    Args:
        text: (N,) number of each item's text.
        size: how many searches and pairs of a visit at most.
    """
    popularity = np.bincount(corpus.item[split == TRAIN], minlength=len(corpus.items))
    requests = sample_requests(corpus, split, VALID, size, seed)
    requests = Requests.of(corpus, requests.event[[bool(query) for query in requests.query]])
    asked = encoder.encode(requests.query)
    bought = interactions(corpus, split, VALID)
    pairs = together(corpus, bought, text, size, np.random.default_rng(seed))
    values: dict[str, float] = {"valid_searches": len(requests), "valid_together": len(pairs)}
    for name, items, queries in (("raw", raw, asked), ("aligned", alignment.apply(raw), alignment.apply(asked))):
        if len(requests):
            found = ranks(queries, items, text, popularity, requests.target.astype(np.int64))
            values |= {f"search_recall@{cut}_{name}": value for cut, value in recalls(found).items()}
        if len(pairs):
            found = ranks(items[pairs.left], items, text, popularity, pairs.right, text[pairs.left])
            values |= {f"together_recall@{cut}_{name}": value for cut, value in recalls(found).items()}
    return values


def held_out_table(values: dict[str, float]) -> Table:
    """The held-out check for people: recall with the frozen and with the aligned vectors."""
    table = Table("held-out recall", "of", box=SIMPLE_HEAD)
    for column in ("frozen", "aligned"):
        table.add_column(column, justify="right")
    for name, title, count in (
        ("search", "query to item bought", values["valid_searches"]),
        ("together", "item to item of the same visit", values["valid_together"]),
    ):
        for cut in CUTS:
            if f"{name}_recall@{cut}_raw" in values:
                before, after = (values[f"{name}_recall@{cut}_{which}"] for which in ("raw", "aligned"))
                table.add_row(f"{title} @{cut}", f"{count:,.0f}", f"{before:.4f}", f"{after:.4f}")
    return table
