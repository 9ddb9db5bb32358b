"""The protocol of what answers requests."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from onesearch.corpus import Requests
from onesearch.corpus.offers import Offers
from onesearch.prefix import PrefixIndex
from onesearch.search import Scorer
from onesearch.search.interest import InterestIndex


class Reader(Protocol):
    """A trained model, and how it reads requests; it is put into evaluation mode.

    A class of it has `load(run, folder, corpus, table)`, which reads a saved model back.

    Attributes:
        interest: the items by their vectors, for a model with an interest head, whose scorers then have `interest` too
            (see `onesearch.search.fusion.Interested`); None for a model without.
        offers: what is on offer, for a model that is told; None for one that is not.
    """

    @property
    def interest(self) -> InterestIndex | None: ...

    @property
    def offers(self) -> Offers | None: ...

    @property
    def index(self) -> PrefixIndex:
        """What is generated from: the items on sale."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def read(self, requests: Requests) -> Scorer[Any]:
        """B requests, ready to be searched for."""
        ...

    def given(self, requests: Requests) -> NDArray[np.int64]:
        """(B, H) the past events that the model is given of each request, the most relevant first; -1 in empty
        places."""
        ...
