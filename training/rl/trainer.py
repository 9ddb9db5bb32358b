"""The loop of the GRPO family: roll out, reward, move the policy. Its script, `training/grpo.py`, says more."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from onesearch.corpus import Requests
from onesearch.retriever import Retriever
from training.batches import Events
from training.karma import Told
from training.launch import Guarded
from training.rl import advantages, losses
from training.rl.best import load_weights, save_weights
from training.rl.lists import ListWeights, reward_lists
from training.rl.options import GrpoArguments, PolicyArguments
from training.rl.policies import GeneratorPolicy, LanguagePolicy
from training.rl.rewards import Rewards
from training.rl.rollouts import LISTED, Rolling, Rollout, roll_out
from training.validation import validation

log = logging.getLogger(__name__)


class RepeatedBatches(Sampler[int]):
    """Batches of events in a random order, each of them `times` in a row; the same for any number of processes.

    Args:
        batch: events a step, over all processes and accumulated gradients.
    """

    def __init__(self, events: int, batch: int, times: int, seed: int) -> None:
        self.events, self.batch, self.times, self.seed, self.epoch = events, batch, times, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.events // self.batch * self.batch * self.times

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.events)
        for start in range(0, self.events // self.batch * self.batch, self.batch):
            for _ in range(self.times):
                yield from order[start : start + self.batch].tolist()


@dataclass
class Kept:
    """A rollout with what it earned, as long as it is learnt from."""

    requests: Requests
    rollout: Rollout
    advantages: Tensor
    gates: Tensor | None
    reference: Tensor | None
    old: Tensor | None = None


class GrpoTrainer(Guarded):
    """Rolls out, rewards, and moves the policy; see the module."""

    def __init__(
        self,
        *arguments: Any,
        policy: GeneratorPolicy | LanguagePolicy,
        reference: GeneratorPolicy | LanguagePolicy | None,
        options: PolicyArguments,
        rewards: Rewards,
        retriever: Retriever,
        held_out: Requests,
        told: Told | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, model=policy, **more)
        self.policy, self.reference, self.options, self.rewards = policy, reference, options, rewards
        self.retriever, self.held_out, self.told = retriever, held_out, told
        self.rolling = rolling(options, self.args)
        self._kept: list[Kept] = []
        self._step = 0  # within an update, where gradients accumulate
        self._seen: dict[str, list[float]] = {}
        self._first_entropy: float | None = None

    # the loop's parts, in the order of a step

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        args, more = self.args, self.options
        place = self._step % args.gradient_accumulation_steps
        if self.state.global_step % args.num_iterations == 0:
            self._kept[place:] = [self.rolled(inputs["event"].cpu().numpy())]
        self._step += 1
        kept = self._kept[place]
        rollout, device = kept.rollout, args.device
        labels = told = None
        if more.sft or more.karma:
            labels = torch.from_numpy(self.retriever.table.codes[kept.requests.target].astype(np.int64)).to(device)
            told = None if self.told is None else _moved(self.told(kept.requests.event), device)
        words = {"words": True} if rollout.words else {}
        said = model(inputs=_moved(rollout.inputs, device), codes=rollout.codes, labels=labels, told=told, **words)
        log_prob = said["log_prob"]
        if kept.old is None:
            kept.old = log_prob.detach()
        ratio = (log_prob - kept.old).exp()
        extra = None
        if kept.reference is not None:
            apart = losses.divergence(log_prob, kept.reference, ratio if args.use_bias_correction_kl else None)
            extra = args.beta * apart
            self._note("kl", apart[rollout.used])
        loss = losses.policy_loss(
            log_prob,
            kept.old,
            kept.advantages,
            rollout.used,
            loss_type=args.loss_type,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon_high,
            delta=args.delta,
            early=more.early,
            importance_sampling_level=args.importance_sampling_level,
            gates=kept.gates,
            extra=extra,
        )
        terms = said["terms"]
        if more.sft:
            loss = loss + more.sft * terms["sft"]
        if more.karma and told is not None:
            config = self.policy.model.config
            karma = sum(getattr(config, name) * one for name, one in terms.items() if name != "sft")
            loss = loss + more.karma * karma
        for name, term in terms.items():
            self._note(name, term)
        self._note("entropy", said["entropy"][rollout.used])
        self._note("ratio", ratio[rollout.used])
        return (loss, said) if return_outputs else loss

    def rolled(self, events: NDArray[np.int64]) -> Kept:
        """Answers of the policy to the searches behind events, and what they earned."""
        args, more, policy = self.args, self.options, self.policy
        requests = Requests.of(self.retriever.corpus, events)
        training = policy.training
        policy.eval()
        rollout = roll_out(policy, requests, self.rolling, args.seed, self.state.global_step)
        if more.rollout in LISTED:
            weights = ListWeights(wanted=max(more.keyword_tokens // 2, 1))
            end = policy.reader.writer.words.tokenizer.eos_token_id if isinstance(policy, LanguagePolicy) else None
            total, each = reward_lists(rollout, requests, self.rewards, weights, end)
        else:
            earned = self.rewards(requests, rollout.items)
            total, each = torch.from_numpy(earned.total), earned.each
        total = total.to(rollout.codes.device)
        spread = advantages.deviation(total, rollout.there)
        self._note("frac_reward_zero_std", (spread <= 1e-8).float())
        self._note("reward", total[rollout.there])
        self._note("reward_std", spread)
        for name, one in each.items():
            self._note(f"rewards/{name}/mean", torch.from_numpy(one))
        gates = None
        if args.scale_rewards == "batch":
            everybody = self.accelerator.gather(total)
            advantage = advantages.group(total, rollout.there, "none") / (everybody.std() + advantages.SPREAD)
        else:
            advantage = advantages.group(total, rollout.there, args.scale_rewards)
        if more.advantage != "group":
            truths = torch.from_numpy(self.retriever.table.codes[requests.target].astype(np.int64))[:, None]
            found = advantages.position_aware(
                rollout.codes,
                truths.to(rollout.codes.device),
                rollout.there,
                more.position_weights,
                more.advantage == "prefix",
            )
            advantage, gates = found.advantages + more.group_weight * advantage.unsqueeze(-1), found.gates
        chosen = self._with_signal(spread, len(events) // more.dynamic_sampling)
        if chosen is not None:
            requests, rollout = requests.take(chosen.cpu().numpy()), _rows(rollout, chosen)
            advantage, gates = advantage[chosen], None if gates is None else gates[chosen]
        reference = None
        if self.reference is not None:
            words = {"words": True} if rollout.words else {}
            with torch.no_grad():
                reference = self.reference(_moved(rollout.inputs, args.device), rollout.codes, **words)["log_prob"]
        policy.train(training)
        return Kept(requests, rollout, advantage, gates, reference)

    def _with_signal(self, spread: Tensor, number: int) -> Tensor | None:
        """DAPO's dynamic sampling: (number,) the groups to learn from, those with different rewards first."""
        if self.options.dynamic_sampling == 1:
            return None
        return (spread <= 1e-8).int().argsort(stable=True)[:number].sort().values

    # what is watched

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Validate on held-out searches; keep the weights if they are the best so far."""
        metrics: list[Any] = [None]
        if self.is_world_process_zero():
            training = self.policy.training
            self.policy.eval()
            self.policy.serve()
            try:
                found = validation(self.retriever, self.held_out, self.options.valid_beams)
            finally:
                self.policy.learn()
                self.policy.train(training)
            metrics = [{name.replace("valid_", "eval_"): value for name, value in found.items()}]
        if self.args.world_size > 1:
            torch.distributed.broadcast_object_list(metrics)
        found = metrics[0]
        self.log(dict(found))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return dict(found)

    def _note(self, name: str, values: Tensor) -> None:
        self._seen.setdefault(name, []).append(float(values.detach().float().mean()) if values.numel() else 0.0)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Beside the loss what was rolled out since the last time, on average."""
        if "loss" in logs:
            logs = logs | {name: float(np.mean(values)) for name, values in self._seen.items()}
            self._seen.clear()
        super().log(logs, *arguments, **options)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        entropy = self._seen["entropy"][-1]
        if self._first_entropy is None:
            self._first_entropy = entropy
        if entropy < self.options.entropy_floor * self._first_entropy:
            told = (
                "the policy collapses: a choice has %.3f nats, it began with %.3f; stopping, the best weights are kept"
            )
            log.warning(told, entropy, self._first_entropy)
            self.control.should_training_stop = True
        return loss

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        args = self.args
        whole = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RepeatedBatches(len(train_dataset or self.train_dataset), whole, args.num_iterations, args.seed)

    # weights

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.policy, folder / transformers.utils.SAFE_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.policy, Path(resume_from_checkpoint) / transformers.utils.SAFE_WEIGHTS_NAME)


def rolling(options: PolicyArguments, args: GrpoArguments) -> Rolling:
    """How to roll out, of the options."""
    return Rolling(
        kind=options.rollout,
        group=args.num_generations,
        temperature=args.temperature,
        beams=options.beams,
        length=options.list_length,
        depth=options.list_depth,
        follow=options.list_follow,
        words=options.keyword_tokens,
    )


def collate(events: Sequence[int]) -> dict[str, Tensor]:
    """Events; the trainer rolls out of them what it needs."""
    return {"event": torch.tensor(events, dtype=torch.int64)}


def _rows(rollout: Rollout, rows: Tensor) -> Rollout:
    """Some of the requests of a rollout."""
    inputs = {
        name: {key: one[rows] for key, one in value.items()} if isinstance(value, dict) else value[rows]
        for name, value in rollout.inputs.items()
    }
    return dataclasses.replace(
        rollout,
        inputs=inputs,
        codes=rollout.codes[rows],
        used=rollout.used[rows],
        items=rollout.items[rows.cpu().numpy()],
    )


def _moved(inputs: Any, device: torch.device) -> Any:
    return {
        name: _moved(value, device) if isinstance(value, dict) else value.to(device) for name, value in inputs.items()
    }
