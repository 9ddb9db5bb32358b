"""What every alignment does beside its loss: validate, keep the best weights, say what it sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from onesearch.corpus import Requests
from onesearch.retriever import Retriever
from training.launch import Guarded
from training.rl.advantages import list_rewards
from training.rl.best import load_weights, save_weights
from training.rl.policies import GeneratorPolicy, LanguagePolicy
from training.rl.rewards import Rewards
from training.validation import lists_together, ndcg, places, summary

LENGTH: Final = 10
"""Items of a list that count in a validation."""


class AlignmentTrainer(Guarded):
    """A `Trainer` of a policy.

    Attributes:
        each: (Q,) of each held-out search at the last validation: `ndcg`, NDCG@10 of what was bought, and `reward`,
            what the ten items of the list earn, weighed by their ranks as a list reward is.
        judged: whether rewards can tell the latter.

    Args:
        rewards: what items earn.
        retriever: the policy's, with all that a served model knows. held_out: searches to validate on.
        valid_beams: beam width there.
    """

    def __init__(
        self,
        *arguments: Any,
        policy: GeneratorPolicy | LanguagePolicy,
        rewards: Rewards,
        retriever: Retriever,
        held_out: Requests,
        valid_beams: int,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, model=policy, **more)
        self.policy, self.rewards = policy, rewards
        self.retriever, self.held_out, self.valid_beams = retriever, held_out, valid_beams
        self.each: dict[str, NDArray[np.float64]] = {}
        self.judged = True
        self._seen: dict[str, list[float]] = {}

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Validate on held-out searches; see `Best`."""
        training = self.policy.training
        self.policy.eval()
        self.policy.serve()
        try:
            items = lists_together(self.retriever, self.held_out, self.valid_beams)
        finally:
            self.policy.learn()
            self.policy.train(training)
        rank = places(items, self.held_out)
        self.each = {"ndcg": ndcg(rank)}
        found = {name.replace("valid_", "eval_"): value for name, value in summary(rank).items()}
        if self.judged:
            earned = torch.from_numpy(self.rewards(self.held_out, items[:, :LENGTH]).total)
            self.each["reward"] = list_rewards(earned).double().numpy()
            found["eval_reward@10"] = float(self.each["reward"].mean())
        self.log(dict(found))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return dict(found)

    def note(self, name: str, values: Tensor) -> None:
        """Log the mean of some values the next time."""
        self._seen.setdefault(name, []).append(float(values.detach().float().mean()) if values.numel() else 0.0)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Beside the loss what was rolled out since the last time, on average."""
        if "loss" in logs:
            logs = logs | {name: float(np.mean(values)) for name, values in self._seen.items()}
            self._seen.clear()
        super().log(logs, *arguments, **options)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.policy, folder / transformers.utils.SAFE_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.policy, Path(resume_from_checkpoint) / transformers.utils.SAFE_WEIGHTS_NAME)


def moved(inputs: Any, device: torch.device) -> Any:
    """Tensors by name, some of them again by name, on another device."""
    return {
        name: moved(value, device) if isinstance(value, dict) else value.to(device) for name, value in inputs.items()
    }
