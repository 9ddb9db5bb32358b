"""The best weights of a training, those it began with among them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onesearch.files import atomic_path, read_json, write_json

if TYPE_CHECKING:
    from training.rl.aligned import AlignmentTrainer

log = logging.getLogger(__name__)

WATCHED: Final = {"ndcg": "NDCG@10", "reward": "reward@10"}
"""What the best weights may be the best of, and how it is spelt."""
WATCH_HELP: Final = "Keep the weights with the best ndcg of what was bought, or whose lists earn the best reward."


class Best(TrainerCallback):
    """Keeps the weights of the best validation, and stops after too many that are not better.

    The best of several looks at a few thousand searches is better by chance. So weights are kept only if they beat
    those of the start by more than `margin` standard errors of the paired difference, in which users, not searches,
    count as independent. Where the reward is watched, they must not lose more than as many of NDCG@10 either: what was
    bought is to be found as before.

    Args:
        trainer: whose `policy` it is; its `each` is looked at after a validation.
        watch: `ndcg` or `reward`.
    """

    def __init__(self, trainer: AlignmentTrainer, folder: Path, watch: str, patience: int, margin: float) -> None:
        self.trainer, self.folder, self.watch, self.patience, self.margin = trainer, folder, watch, patience, margin
        self.policy = trainer.policy

    @property
    def known(self) -> dict[str, Any] | None:
        """step and metrics of the best so far."""
        path = self.folder / "best.json"
        return read_json(path) if path.exists() else None

    def restore(self) -> None:
        """Give the policy the best weights."""
        load_weights(self.policy, self.folder / "weights.safetensors")

    def forget(self) -> None:
        """Remove what is kept."""
        for name in ("weights.safetensors", "best.json", "start.safetensors"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.exists():
            self.folder.rmdir()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        if state.is_world_process_zero:
            self._look(state.global_step, metrics)
        if args.world_size > 1:
            torch.distributed.barrier()
        best = self.known
        if best is None or not self.patience:
            return
        since = (state.global_step - best["step"]) / max(float(state.eval_steps or args.eval_steps or 1), 1)
        if since >= self.patience:
            log.info("no better validation since step %d: stopping", best["step"])
            control.should_training_stop = True

    def _look(self, step: int, metrics: dict[str, float]) -> None:
        best, each, watched = self.known, self.trainer.each, f"eval_{self.watch}@10"
        if best is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(self.folder / "start.safetensors") as path:
                save_file({name: torch.from_numpy(values) for name, values in each.items()}, path)
        elif metrics[watched] <= best[watched] or not self._beats_the_start(step, each):
            return
        save_weights(self.policy, self.folder / "weights.safetensors")
        write_json(self.folder / "best.json", {"step": step, **metrics})

    def _beats_the_start(self, step: int, each: dict[str, NDArray[np.float64]]) -> bool:
        start = load_file(self.folder / "start.safetensors")
        apart = {name: values - start[name].numpy() for name, values in each.items()}
        noise = {
            name: self.margin * standard_error(values, self.trainer.held_out.user) for name, values in apart.items()
        }
        gain, lost = apart[self.watch].mean(), -apart["ndcg"].mean()
        if gain <= noise[self.watch]:
            told = "step %d: %+.4f %s against the start is within the noise of the validation, %.4f: not kept"
            log.info(told, step, gain, WATCHED[self.watch], noise[self.watch])
            return False
        if lost > noise["ndcg"]:
            told = "step %d: %+.4f reward@10 cost %.4f NDCG@10, which is more than noise, %.4f: not kept"
            log.info(told, step, gain, lost, noise["ndcg"])
            return False
        return True


def standard_error(values: NDArray[np.float64], group: NDArray[np.integer]) -> float:
    """Of the mean of (Q,) values whose groups (Q,) are independent."""
    _, place = np.unique(group, return_inverse=True)
    return float(np.sqrt(np.square(np.bincount(place, weights=values - values.mean())).sum()) / len(values))


def save_weights(policy: torch.nn.Module, path: Path) -> None:
    """The policy's weights, shared ones once."""
    seen: set[int] = set()
    kept = {}
    for name, weight in policy.named_parameters():
        if weight.data_ptr() not in seen:
            seen.add(weight.data_ptr())
            kept[name] = weight.detach().cpu().contiguous()
    with atomic_path(path) as temporary:
        save_file(kept, temporary)


def load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Weights that `save_weights` wrote; those that share one are told by the model itself."""
    policy.load_state_dict(load_file(path), strict=False)
