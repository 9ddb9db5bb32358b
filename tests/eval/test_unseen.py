from __future__ import annotations

import numpy as np
import pytest
from histories import write_histories

from eval.unseen import without_seen
from onesearch.corpus import TEST, Corpus, Requests, make_split, sample_requests, sources


class Counting:
    """Returns the items by number, and remembers how many were asked for."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.tuned: dict[str, int] = {}

    def rank(self, requests: Requests, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((len(requests), k))
        return np.tile(np.arange(k, dtype=np.int32), (len(requests), 1)), np.zeros((len(requests), k), np.float32)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Requests]:
    base = tmp_path_factory.mktemp("unseen")
    corpus = sources.prepare("jsonl", base / "corpus", path=write_histories(base / "log"), on_error="mend")
    return corpus, sample_requests(corpus, make_split(corpus, "leave-one-out"), TEST, 10**6, 0)


@pytest.mark.parametrize("depth", [20, 6])
def test_what_was_seen_is_left_out_and_the_order_stays(asked: tuple[Corpus, Requests], depth: int) -> None:
    """A ranking that is too short for a long history is asked for again, longer, for that history alone."""
    corpus, requests = asked
    system = Counting()
    kept = without_seen(system, corpus, requests, system.rank(requests, depth)[0], 5)
    for row, (start, end) in enumerate(zip(requests.history_start, requests.history_end, strict=True)):
        seen = set(corpus.item[start:end].tolist())
        assert kept[row].tolist() == [item for item in range(24) if item not in seen][:5]
    again = system.asked[1:]
    assert (depth == 20 and not again) or (depth == 6 and again == [(len(requests), 14)])
