"""What the generator is measured against: every system answers the same requests and knows the same past."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Requests


class Scorer(Protocol):
    """Anything that scores given items.

    Attributes:
        calibrated: whether scores are probabilities of the label, or where `logarithmic`, their logarithms.
    """

    name: str
    calibrated: bool
    logarithmic: bool

    def score(self, requests: Requests, items: NDArray[np.int32]) -> NDArray[np.floating[Any]]:
        """(Q, K) scores of (Q, K) items, anything where an item is -1; -inf where an item cannot be scored.

        May use what `System.rank` may use.
        """


class System(Protocol):
    """Anything that answers search requests with items."""

    name: str
    tuned: dict[str, Any]
    """What was chosen on validation requests."""

    def rank(self, requests: Requests, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(Q, k) items, best first, -1 where there are no more; and their (Q, k) scores.

        May use the history and the query of a request and popularity snapshots of its time, nothing later.
        """
