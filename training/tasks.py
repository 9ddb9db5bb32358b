"""The tasks of staged fine-tuning, by the names that a YAML uses. A new one is a function here and a line there.

A task says over which rows it runs (items, queries, events), which columns of the corpus it needs, and turns some of
its rows into prompts and answers. Stages 1 and 2 follow OneSearch (https://arxiv.org/abs/2509.03236), the four keyword
tasks OneSearch-V2 (https://arxiv.org/abs/2603.24422); the wording of the prompts is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus
from onesearch.errors import unknown
from onesearch.ragged import Ragged
from training.material import Example, Material

Rows = NDArray[np.int64]
Build = Callable[[Material, Rows], Example]

ROWS: Final[dict[str, Callable[[Material], Rows]]] = {
    "items": lambda data: data.items,
    "items with a category": lambda data: data.with_category,
    "queries": lambda data: data.training_queries,
    "queries with a keyword": lambda data: data.keyword_queries,
    "answered queries": lambda data: data.asked,
    "events": lambda data: data.targets,
    "events with a keyword": lambda data: data.wished_events,
}
"""What a task can run over."""


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        over: one of `ROWS`. needs: columns, as `items.title`. build: rows -> examples.
        query_sids: whether it needs semantic IDs of texts, which those of pictures cannot give.
    """

    name: str
    over: str
    needs: tuple[str, ...]
    build: Build
    query_sids: bool

    def rows(self, data: Material) -> Rows:
        """The rows that it can be made of."""
        return ROWS[self.over](data)


TASKS: Final[dict[str, Task]] = {}
"""Every task by its name."""


def task(name: str, over: str, needs: Sequence[str], query_sids: bool = False) -> Callable[[Build], Build]:
    """Make a function a task."""

    def named(build: Build) -> Build:
        TASKS[name] = Task(name, over, tuple(needs), build, query_sids)
        return build

    return named


# Stage 1, alignment: texts, semantic IDs and categories of items and queries


@task("item-text-to-sid", "items", ["items.title"])
def _item_text_to_sid(data: Material, items: Rows) -> Example:
    return Example(data.frame("Item: ", data.titles[items], "\nSemantic ID:"), data.sids(items))


@task("item-sid-to-text", "items", ["items.title"])
def _item_sid_to_text(data: Material, items: Rows) -> Example:
    return Example(data.frame("Semantic ID: ", data.sids(items), "\nItem:"), data.text(data.titles[items]))


@task("item-text-to-category", "items with a category", ["items.title", "items.categories"])
def _item_text_to_category(data: Material, items: Rows) -> Example:
    return Example(data.frame("Item: ", data.titles[items], "\nCategory:"), data.text(data.categories[items]))


@task("item-sid-to-category", "items with a category", ["items.categories"])
def _item_sid_to_category(data: Material, items: Rows) -> Example:
    return Example(data.frame("Semantic ID: ", data.sids(items), "\nCategory:"), data.text(data.categories[items]))


@task("query-text-to-sid", "queries", ["events.query"], query_sids=True)
def _query_text_to_sid(data: Material, queries: Rows) -> Example:
    return Example(data.frame("Query: ", data.query_texts(queries), "\nSemantic ID:"), data.query_sids(queries))


@task("query-sid-to-text", "queries", ["events.query"], query_sids=True)
def _query_sid_to_text(data: Material, queries: Rows) -> Example:
    return Example(
        data.frame("Semantic ID: ", data.query_sids(queries), "\nQuery:"), data.text(data.query_texts(queries))
    )


# Stage 1 with keywords: the four tasks of OneSearch-V2


@task("query-to-keywords", "queries with a keyword", ["events.query"])
def _query_to_keywords(data: Material, queries: Rows) -> Example:
    keywords = data.keyword_texts(data.keywords_of(queries))
    return Example(data.frame("Query: ", data.query_texts(queries), "\nKeywords:"), data.text(keywords))


@task("query-sid-to-keyword-sid", "queries with a keyword", ["events.query"], query_sids=True)
def _query_sid_to_keyword_sid(data: Material, queries: Rows) -> Example:
    keywords = data.keyword_sids(data.keywords_of(queries).cut(1))
    return Example(data.frame("Semantic ID: ", data.query_sids(queries), "\nKeyword:"), keywords)


@task("user-to-keywords", "events with a keyword", ["events.query", "events.user_id"])
def _user_to_keywords(data: Material, events: Rows) -> Example:
    prompt = data.writer.write(data.requests(events), ask="Keywords:").tokens
    return Example(prompt, data.text(data.keyword_texts(data.wishes(events))))


@task("user-sid-to-keyword-sid", "events with a keyword", ["events.query", "events.user_id"], query_sids=True)
def _user_sid_to_keyword_sid(data: Material, events: Rows) -> Example:
    prompt = data.writer.write(data.requests(events), text=False, ask="Keyword:").tokens
    return Example(prompt, data.keyword_sids(_last(data.wishes(events))))


# Stage 2, co-occurrence: what was searched and what was bought, as texts and as semantic IDs


@task("query-to-item-text", "answered queries", ["events.query", "items.title"])
def _query_to_item_text(data: Material, events: Rows) -> Example:
    query, item = data.corpus.query[events], data.corpus.item[events]
    return Example(data.frame("Query: ", data.query_texts(query), "\nItem:"), data.text(data.titles[item]))


@task("item-to-query-text", "answered queries", ["events.query", "items.title"])
def _item_to_query_text(data: Material, events: Rows) -> Example:
    query, item = data.corpus.query[events], data.corpus.item[events]
    return Example(data.frame("Item: ", data.titles[item], "\nQuery:"), data.text(data.query_texts(query)))


@task("query-sid-to-item-sid", "answered queries", ["events.query"], query_sids=True)
def _query_sid_to_item_sid(data: Material, events: Rows) -> Example:
    query, item = data.corpus.query[events], data.corpus.item[events]
    return Example(data.frame("Semantic ID: ", data.query_sids(query), "\nBought:"), data.sids(item))


@task("item-sid-to-query-sid", "answered queries", ["events.query"], query_sids=True)
def _item_sid_to_query_sid(data: Material, events: Rows) -> Example:
    query, item = data.corpus.query[events], data.corpus.item[events]
    return Example(data.frame("Semantic ID: ", data.sids(item), "\nSearched:"), data.query_sids(query))


# Stage 3, personalised


@task("personalised", "events", ["events.user_id", "events.item_id"])
def _personalised(data: Material, events: Rows) -> Example:
    return Example(data.writer.write(data.requests(events)).tokens, data.sids(data.corpus.item[events]))


def find_task(name: object, place: object = None) -> Task:
    """A task by its name.

    Raises:
        UserError: there is none; the nearest name is told.
    """
    if name in TASKS:
        return TASKS[str(name)]
    raise unknown("unknown task", name, TASKS, place)


def missing_columns(needed: Task, corpus: Corpus) -> list[str]:
    """Those of the columns that a task needs which have no value in the corpus."""
    there = {
        "items.title": len(corpus.items) > 0,
        "items.categories": bool((corpus.items["categories"].list.len() > 0).any()),
        "events.query": bool((corpus.query >= 0).any()),
        "events.user_id": len(corpus.user) > 0,
        "events.item_id": len(corpus.item) > 0,
    }
    return [column for column in needed.needs if not there[column]]


def _last(rows: Ragged) -> Ragged:
    """The last of each row that has any."""
    end = rows.offsets[1:]
    kept = rows.lengths > 0
    return Ragged(rows.ids[end[kept] - 1], np.concatenate([[0], np.cumsum(kept)]).astype(np.int64))
