"""Systems that answer while others are still being fitted."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from eval.baselines import System
from onesearch.corpus import Requests

Answers = tuple[NDArray[np.int32], NDArray[np.float32]]


class Begun:
    """A system that has begun to answer these requests; it waits for their answers when it is asked for them."""

    def __init__(self, system: System, requests: Requests, k: int) -> None:
        self.system, self.name, self.tuned = system, system.name, system.tuned
        self._requests, self._k = requests, k
        self._answers: Future[Answers] = Future()

    def rank(self, requests: Requests, k: int) -> Answers:
        """See `System.rank`."""
        if requests is self._requests and k == self._k:
            return self._answers.result()
        return self.system.rank(requests, k)

    def answer(self) -> None:
        """Called once, in a thread of its own."""
        try:
            self._answers.set_result(self.system.rank(self._requests, self._k))
        except Exception as error:  # noqa: BLE001 - for the one who waits
            self._answers.set_exception(error)


def begin(systems: Iterable[System], requests: Requests, k: int) -> list[Begun]:
    """Let systems answer requests, one after another, beside what the caller does meanwhile."""
    begun = [Begun(system, requests, k) for system in systems]

    def work() -> None:
        for one in begun:
            one.answer()

    Thread(target=work, daemon=True).start()  # nobody waits for it who stops the program
    return begun
