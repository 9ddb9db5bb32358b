"""What a trained generator answers to requests of the log: the hardest candidates for a reward model to learn from."""

from __future__ import annotations

import numpy as np

from onesearch.corpus import Corpus, Requests
from onesearch.errors import UserError
from onesearch.retriever import Retriever
from onesearch.run import Run
from training.lists import Ints


def generated(run: Run, corpus: Corpus, events: Ints, count: int, stage: str) -> tuple[Ints, Ints]:
    """Events (n,), ascending, and `count` items for the request of each (n, count), -1 where there are fewer.

    Args:
        events: whose requests are asked, in any order.
        stage: of the generator.

    Raises:
        UserError: there is no such generator.
    """
    if not (run.folder / "models" / stage).is_dir():
        remedy = f"train it first, or leave it out with --beam 0: onesearch train --run {run.folder}"
        raise UserError("no generator to ask", place=run.folder / "models" / stage, remedy=remedy)
    retriever = Retriever.load(run.folder, stage)
    asked = np.unique(events)
    items, _ = retriever.rank(Requests.of(corpus, asked), count, max(2 * count, 16))
    return asked, items.astype(np.int64)
