"""Which searches to show: queries that two households answer differently, chosen from the log by a rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus
from onesearch.corpus.schema import QUERY_NOISE
from onesearch.corpus.split import target_kind

SHORTLIST = 200
"""Queries looked at: the most frequent ones."""

CANDIDATES = 20
"""Users looked at per query: those who asked it most often."""


@dataclass(frozen=True)
class Showcase:
    """One query and two users who bought different things after it."""

    query: str
    users: tuple[str, str]


def choose(corpus: Corpus, count: int = 3) -> list[Showcase]:
    """The `count` queries, each for the two users whose purchases after it overlap least.

    Of the most frequent queries those come first after which people buy the most different items, since these are the
    ones where knowing the user matters. Derived queries are taken undisturbed. No word and no user is shown twice. A
    log without queries gives one empty query.
    """
    whole = corpus.query_noise <= QUERY_NOISE.index("clean")
    asked = np.flatnonzero((corpus.query >= 0) & (corpus.kind == target_kind(corpus)) & whole)
    if len(asked) == 0:
        longest = np.argsort(-np.diff(corpus.offsets), kind="stable")[:2]
        pair = _ids(corpus, longest)
        return [Showcase("", pair)] if pair else []
    frequent = np.argsort(-np.bincount(corpus.query[asked]), kind="stable")[:SHORTLIST]
    asked = asked[np.isin(corpus.query[asked], frequent)]
    by_variety = sorted(frequent, key=lambda query: -_variety(corpus, asked[corpus.query[asked] == query]))
    shown: list[Showcase] = []
    taken: set[int] = set()
    for query in by_variety:
        words = set(corpus.queries[query].split())
        if any(words & set(one.query.split()) for one in shown):
            continue
        users = _most_different(corpus, asked[corpus.query[asked] == query], taken)
        if users is not None and (pair := _ids(corpus, users)):
            shown.append(Showcase(corpus.queries[query], pair))
            taken.update(int(user) for user in users)
        if len(shown) == count:
            break
    return shown


def _variety(corpus: Corpus, events: NDArray[np.int64]) -> float:
    """Entropy of the items chosen in these events, in nats."""
    share = np.unique(corpus.item[events], return_counts=True)[1] / max(len(events), 1)
    return float(-(share * np.log(share)).sum())


def _most_different(corpus: Corpus, events: NDArray[np.int64], taken: set[int]) -> NDArray[np.int64] | None:
    """(2,) of the most active users, the pair with the smallest overlap of items; None if there are not two."""
    users, counts = np.unique(corpus.user[events], return_counts=True)
    free = ~np.isin(users, list(taken))
    users, counts = users[free], counts[free]
    best = np.argsort(-counts, kind="stable")[:CANDIDATES]
    if len(best) < 2:
        return None
    chosen = [set(corpus.item[events[corpus.user[events] == users[row]]].tolist()) for row in best]
    pairs = [
        (len(chosen[i] & chosen[j]) / len(chosen[i] | chosen[j]), i + j, i, j)
        for i in range(len(best))
        for j in range(i + 1, len(best))
    ]
    _, _, i, j = min(pairs)
    return np.array([users[best[i]], users[best[j]]], np.int64)


def _ids(corpus: Corpus, users: NDArray[np.int64]) -> tuple[str, str] | None:
    if len(users) < 2:
        return None
    first, second = corpus.users["user_id"][[int(users[0]), int(users[1])]].to_list()
    return first, second
