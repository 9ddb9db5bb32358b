"""The best weights of a training, those it began with among them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onesearch.files import atomic_path, read_json, write_json

log = logging.getLogger(__name__)

WATCHED: Final = "eval_ndcg@10"


class Best(TrainerCallback):
    """Keeps the weights of the best validation, and stops after too many that are not better.

    Ties keep the earlier ones, so that what does not help changes nothing.
    """

    def __init__(self, policy: torch.nn.Module, folder: Path, patience: int) -> None:
        self.policy, self.folder, self.patience = policy, folder, patience

    @property
    def known(self) -> dict[str, Any] | None:
        """step and ndcg of the best so far."""
        path = self.folder / "best.json"
        return read_json(path) if path.exists() else None

    def restore(self) -> None:
        """Give the policy the best weights."""
        load_weights(self.policy, self.folder / "weights.safetensors")

    def forget(self) -> None:
        """Remove what is kept."""
        for name in ("weights.safetensors", "best.json"):
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
        best = self.known
        better = best is None or metrics[WATCHED] > best[WATCHED]
        if better and state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_weights(self.policy, self.folder / "weights.safetensors")
            write_json(self.folder / "best.json", {"step": state.global_step, **metrics})
        if args.world_size > 1:
            torch.distributed.barrier()
        if better or best is None or not self.patience:
            return
        since = (state.global_step - best["step"]) / max(float(state.eval_steps or args.eval_steps or 1), 1)
        if since >= self.patience:
            log.info("no better validation since step %d: stopping", best["step"])
            control.should_training_stop = True


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
