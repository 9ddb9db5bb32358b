"""The reward model: what is expected of an item that is shown to a user who searches."""

from onesearch.reward.judging import Judgement, RewardModel
from onesearch.reward.levels import LEVELS, Interactions, Rates
from onesearch.reward.model import RewardConfig, RewardNetwork

__all__ = ["LEVELS", "Interactions", "Judgement", "Rates", "RewardConfig", "RewardModel", "RewardNetwork"]
