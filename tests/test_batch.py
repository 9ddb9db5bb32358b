"""Searches from a file: the order is kept, mistakes are named by line, and no half file is left."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from onesearch.batch import BATCH, answer_file, read_request
from onesearch.errors import UserError
from onesearch.retriever import Answer, Request, Retriever
from onesearch.where import Filter


class Echo:
    """Answers without a model: the note holds what was asked."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def check(self, request: Request, place: str) -> None:
        pass

    def search(self, requests: Sequence[Request], k: int, mode: str) -> list[Answer]:
        self.sizes.append(len(requests))
        return [
            Answer(one.query, one.user, known_user=True, hits=[], given=[], exact=True, mass=None, note=str(k))
            for one in requests
        ]


def answered(folder: Path, lines: list[str], progress: list[tuple[int, int]] | None = None) -> list[dict[str, object]]:
    source, target = folder / "requests.jsonl", folder / "out" / "results.jsonl"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = None if progress is None else lambda done, total: progress.append((done, total))
    assert answer_file(cast(Retriever, Echo()), source, target, 10, report) == sum(1 for line in lines if line.strip())
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_answers_come_in_the_order_of_the_requests_each_with_its_own_k(tmp_path: Path) -> None:
    lines = [json.dumps({"query": f"tea {n}", "user": f"u{n}", "k": n % 3 + 1}) for n in range(BATCH + 5)]
    progress: list[tuple[int, int]] = []
    answers = answered(tmp_path, [*lines, "", '{"query": "thé"}'], progress)
    assert [one["query"] for one in answers] == [f"tea {n}" for n in range(BATCH + 5)] + ["thé"]
    assert [one["note"] for one in answers[:4]] == ["1", "2", "3", "1"]
    assert (answers[-1]["user"], answers[-1]["note"]) == (None, "10")
    assert progress == [(BATCH, BATCH + 6), (BATCH + 6, BATCH + 6)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: no request"),
        ('{"user": "1"}', "line 2: no request"),
        ('{"query": "a", "usr": "1"}', "line 2: unknown key: 'usr' .known: query, user, k, where, allow, deny"),
        ('{"query": "a", "user": 1001}', "line 2: 'user' is not a text: 1001"),
        ('{"query": "a", "k": true}', "line 2: 'k' is not a whole number"),
        ('{"query": "a", "k": 0}', "line 2: 'k' is less than 1"),
        ('{"query": "a", "k": null}', "line 2: 'k' is not a whole number"),
        ('{"query": null}', "line 2: 'query' is not a text"),
        ('{"query": "a", "where": 5}', "line 2: 'where' is not a text: 5"),
        ('{"query": "a", "allow": "1"}', "line 2: 'allow' is not a list of texts: '1'"),
        ('{"query": "a", "deny": ["1", 2]}', "line 2: 'deny' is not a list of texts"),
    ],
)
def test_a_line_that_is_no_request_is_named_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answered(tmp_path, ['{"query": "fine"}', line])
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_are_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        answer_file(cast(Retriever, Echo()), tmp_path / "none.jsonl", tmp_path / "out.jsonl", 10)
    (tmp_path / "latin.jsonl").write_bytes('{"query": "thé"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        answer_file(cast(Retriever, Echo()), tmp_path / "latin.jsonl", tmp_path / "out.jsonl", 10)
    assert not (tmp_path / "out.jsonl").exists()


def test_user_null_is_nobody_in_particular() -> None:
    assert read_request('{"query": "tea", "user": null}', "here", 3) == (Request("tea", None), 3)


def test_filters_of_a_request() -> None:
    line = '{"query": "tea", "where": "price < 5", "allow": ["a", "b"], "deny": ["b"]}'
    assert read_request(line, "here", 3) == (Request("tea", None, Filter("price < 5", ("a", "b"), ("b",))), 3)
    assert read_request('{"query": "tea", "allow": []}', "here", 3)[0].filter == Filter(allow=()), "none may come out"
    absent = read_request('{"query": "tea", "where": null, "allow": null, "deny": null}', "here", 3)
    assert absent == (Request("tea"), 3)
