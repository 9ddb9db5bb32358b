"""Many searches from a file: JSON lines in, JSON lines out, in the same order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onesearch.errors import UserError
from onesearch.files import atomic_path

if TYPE_CHECKING:
    from onesearch.retriever import Answer, Request, Retriever
    from onesearch.search.fusion import Mode

BATCH = 64
"""Requests answered at once."""

KEYS = {
    "query": str,
    "user": str,
    "k": int,
    "where": str,
    "allow": list,
    "deny": list,
    "place": str,
    "device": str,
}
KINDS = {str: "a text", int: "a whole number", list: "a list of texts"}


def answer_file(
    retriever: Retriever,
    source: Path,
    target: Path,
    k: int,
    progress: Callable[[int, int], None] | None = None,
    mode: Mode = "generate",
) -> int:
    """Answer every line `{"query": ..., "user": ..., "k": ...}` of `source` into `target`; tell how many.

    Of the keys in `KEYS` all but `query` may be left out. `target` appears when all lines are answered, whole or not at
    all.

    Raises:
        UserError: no such file, or a line that is no request (file and line are named).
    """
    try:
        with source.open(encoding="utf-8") as lines:
            total = sum(1 for line in lines if line.strip())
        done = 0
        with (
            source.open(encoding="utf-8") as lines,
            atomic_path(target) as part,
            part.open("w", encoding="utf-8") as out,
        ):
            numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            requests = (_checked(retriever, line, f"{source} line {number}", k) for number, line in numbered)
            for answers in answer_all(retriever, requests, mode):
                out.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
                done += len(answers)
                if progress is not None:
                    progress(done, total)
    except FileNotFoundError as error:
        raise UserError("no such file", place=error.filename) from error
    except UnicodeDecodeError as error:
        raise UserError("not UTF-8", place=source, remedy="save the file as UTF-8") from error
    return done


def answer_all(
    retriever: Retriever, requests: Iterable[tuple[Request, int]], mode: Mode = "generate"
) -> Iterator[list[Answer]]:
    """Answers in batches, in the order of the requests; each request is a query with its number of hits."""
    remaining = iter(requests)
    while batch := list(islice(remaining, BATCH)):
        answers: list[Answer] = []
        for k, group in groupby(batch, key=lambda pair: pair[1]):
            answers += retriever.search([request for request, _ in group], k, mode)
        yield answers


def read_request(line: str, place: str, k: int) -> tuple[Request, int]:
    """One line as a request and its number of hits (`k` where it names none)."""
    from onesearch.retriever import Request
    from onesearch.where import Filter

    try:
        value: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg}", place=place, value=line.strip()) from error
    if not isinstance(value, dict) or "query" not in value:
        raise UserError("no request", place=place, value=value, remedy='write {"query": "...", "user": "..."}')
    for key, one in value.items():
        if key not in KEYS:
            raise UserError("unknown key", place=place, value=key, remedy=f"known: {', '.join(KEYS)}")
        if not _fits(key, one):
            kind = KINDS[KEYS[key]]
            raise UserError(f"{key!r} is not {kind}", place=place, value=one, remedy=f"write {kind}")
    hits = value.get("k", k)
    if hits < 1:
        raise UserError("'k' is less than 1", place=place, value=hits, remedy="ask for at least one hit")
    allow = value.get("allow")
    asked = Filter(value.get("where"), None if allow is None else tuple(allow), tuple(value.get("deny") or ()))
    return Request(value["query"], value.get("user"), asked, value.get("place"), value.get("device")), hits


def _fits(key: str, value: Any) -> bool:
    if value is None:
        return key not in ("query", "k")
    if isinstance(value, list):
        return KEYS[key] is list and all(isinstance(one, str) for one in value)
    return isinstance(value, KEYS[key]) and not isinstance(value, bool)


def _checked(retriever: Retriever, line: str, place: str, k: int) -> tuple[Request, int]:
    request, hits = read_request(line, place, k)
    retriever.check(request, place)
    return request, hits
