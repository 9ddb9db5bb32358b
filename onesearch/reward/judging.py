"""A trained reward model, ready to judge items: what reinforcement learning, preference lists and evaluation ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate.utils import send_to_device
from numpy.typing import NDArray

from onesearch.context.batch import ContextBuilder
from onesearch.corpus import Corpus, Requests, make_split
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.model.saved import read_whole
from onesearch.reward.features import RewardFeatures
from onesearch.reward.fusion import fused
from onesearch.reward.model import RewardNetwork
from onesearch.run import Run
from onesearch.sid import SidTable

BLOCK = 256
"""Requests judged at a time."""


@dataclass(frozen=True)
class Judgement:
    """What is expected of K items of each of Q requests; all (Q, K) float32, 0 in empty places.

    Attributes:
        click, conversion, both: probabilities of a click, of a purchase given a click, and of a purchase. In lists like
            those that the model was trained on, which are told in `docs/reward.md`.
        relevance: of item and query, from 0 to 1, whoever asks.
        reward: of the four, by the weights of the model.
    """

    click: NDArray[np.float32]
    conversion: NDArray[np.float32]
    both: NDArray[np.float32]
    relevance: NDArray[np.float32]
    reward: NDArray[np.float32]


class RewardModel:
    """A `RewardNetwork` with what it reads; the vectors of all items are computed once."""

    def __init__(self, features: RewardFeatures, network: RewardNetwork) -> None:
        self.features = features
        content = torch.from_numpy(features.item_content)
        self.network = network.eval().bind(content, torch.from_numpy(features.builder.codes)).keep_vectors()

    @classmethod
    def load(cls, run: Run | Path | str, stage: str = "reward", corpus: Corpus | None = None) -> RewardModel:
        """Read what `training/reward.py` wrote to models/STAGE of a run.

        Args:
            corpus: of the run, where it is loaded already.

        Raises:
            UserError: there is no reward model, or it was trained with other semantic IDs.
        """
        run = run if isinstance(run, Run) else Run.open(run)
        folder = run.folder / "models" / stage
        if not (folder / "model.safetensors").exists():
            remedy = f"accelerate launch training/reward.py --run {run.folder} --stage {stage}"
            raise UserError("no reward model here", place=folder, remedy=remedy)
        transformers.utils.logging.disable_progress_bar()  # loading takes milliseconds
        corpus = Corpus.load(run.folder / "corpus") if corpus is None else corpus
        table, split = SidTable.load(run.folder / "sid"), make_split(corpus, run.settings.split)
        network = read_whole(RewardNetwork, folder)
        if list(network.config.level_sizes) != list(table.level_sizes):
            raise UserError(
                "a reward model of other semantic IDs",
                place=folder,
                value=list(network.config.level_sizes),
                remedy=f"train it again; those of the run have levels of {list(table.level_sizes)}",
            )
        encoder = load_text_encoder(run.settings.encoder)
        builder = ContextBuilder.load(corpus, split, encoder, table.codes, folder, run)
        return cls(RewardFeatures.of(builder), network)

    @property
    def corpus(self) -> Corpus:
        return self.features.builder.corpus

    def judge(self, requests: Requests, items: NDArray[np.integer]) -> Judgement:
        """What is expected of `items` (Q, K), -1 in empty places, if these requests were answered with them."""
        if items.ndim != 2 or len(items) != len(requests):
            raise ValueError(f"items of shape {items.shape} for {len(requests)} requests")
        parts = [
            self._judged(requests.part(slice(start, start + BLOCK)), items[start : start + BLOCK])[0]
            for start in range(0, len(requests), BLOCK)
        ]
        whole = np.concatenate(parts) if parts else np.zeros((0, items.shape[1], 5), np.float32)
        return Judgement(*(np.ascontiguousarray(whole[..., head]) for head in range(5)))

    def context(self, requests: Requests) -> NDArray[np.float32]:
        """(Q, 2 D) vectors of users and queries, which the policy of the weights reads."""
        nothing = np.full((len(requests), 1), -1, np.int64)
        parts = [
            self._judged(requests.part(slice(start, start + BLOCK)), nothing[start : start + BLOCK])[1]
            for start in range(0, len(requests), BLOCK)
        ]
        return np.concatenate(parts)

    @torch.inference_mode()
    def _judged(
        self, requests: Requests, items: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(B, K, 5) the heads and the reward, and (B, 2 D) the context."""
        given = send_to_device(self.features.inputs(requests, items), self.network.device)
        output = self.network(**given)
        found = self.network.probabilities(output.logits, given["items"])
        reward = fused(found, self.network.head_weights(output.context))
        whole = torch.cat([found, reward.unsqueeze(-1)], -1) * (given["items"] >= 0).unsqueeze(-1)
        return whole.float().cpu().numpy(), output.context.float().cpu().numpy()
