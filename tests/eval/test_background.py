"""Systems that answer while others are fitted."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.background import begin
from onesearch.corpus import TRAIN, Corpus, make_split, sample_requests


class Waiting:
    """Answers with its number, once it may."""

    tuned: ClassVar[dict[str, Any]] = {}

    def __init__(self, number: int, may: threading.Event) -> None:
        self.name, self.number, self.may, self.asked = f"system {number}", number, may, 0

    def rank(self, requests: Any, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        self.asked += 1
        assert self.may.wait(20)
        if self.number < 0:
            raise ValueError("cannot answer")
        return np.full((len(requests), k), self.number, np.int32), np.zeros((len(requests), k), np.float32)


def test_answers_are_waited_for_and_mistakes_reach_who_asks(shop: Corpus) -> None:
    requests = sample_requests(shop, make_split(shop, "time"), TRAIN, 7, 0)
    may = threading.Event()
    systems = [Waiting(3, may), Waiting(-1, may), Waiting(5, may)]
    begun = begin(systems, requests, 4)
    assert [one.name for one in begun] == ["system 3", "system -1", "system 5"]
    may.set()  # the caller came this far without their answers
    assert (begun[2].rank(requests, 4)[0] == 5).all()
    with pytest.raises(ValueError, match="cannot answer"):
        begun[1].rank(requests, 4)
    assert begun[0].rank(requests, 4)[0].shape == (7, 4)
    assert [one.asked for one in systems] == [1, 1, 1], "each answered once"
    assert begun[0].rank(requests.part(slice(2)), 9)[0].shape == (2, 9), "something else is answered when it is asked"
    assert systems[0].asked == 2
