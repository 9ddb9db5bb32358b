"""The reward model as something that puts given items in order: by its reward, or by one of its heads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.errors import UserError
from onesearch.reward import RewardModel
from onesearch.reward.fusion import HEADS
from onesearch.run import Run

GIVEN = ("reward", *HEADS)


class RewardScorer:
    """Scores of a trained reward model: what it expects, or the reward that it makes of that.

    A head's scores are probabilities, and those of a click and of a purchase are calibrated where the model was given
    calibrators; in lists like those of its training (see `docs/reward.md`).
    """

    logarithmic = False

    def __init__(self, model: RewardModel, given: str = "reward") -> None:
        """`given`: "reward", or a head: "click", "conversion", "both", "relevance"."""
        if given not in GIVEN:
            raise UserError("unknown score of a reward model", value=given, remedy=f"known: {', '.join(GIVEN)}")
        self.model, self.given = model, given
        self.name = "reward model" if given == "reward" else f"reward model: {given}"
        self.calibrated = given in ("click", "both") and model.network.config.calibration != "none"

    @classmethod
    def load(cls, run: Run, stage: str = "reward", given: str = "reward", corpus: Corpus | None = None) -> RewardScorer:
        """Of the model that `training/reward.py` wrote to models/STAGE of a run."""
        return cls(RewardModel.load(run, stage, corpus), given)

    def score(self, requests: Requests, items: NDArray[np.integer]) -> NDArray[np.float64]:
        """(Q, K) scores of items (Q, K) of Q requests; -inf in empty places."""
        found = getattr(self.model.judge(requests, items), self.given).astype(np.float64)
        return np.where(items >= 0, found, -np.inf)
