"""The loop of the GRPO family: roll out, reward, move the policy. Its script, `training/grpo.py`, says more."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from onesearch.corpus import Requests
from onesearch.files import read_json, write_json
from training.batches import Events
from training.karma import Told
from training.rl import advantages, losses
from training.rl.aligned import AlignmentTrainer, moved
from training.rl.lists import ListWeights, reward_lists
from training.rl.logged import LoggedLists, Shown, examination, inverse_propensity
from training.rl.options import IMITATION, GrpoArguments, PolicyArguments
from training.rl.policies import GeneratorPolicy, LanguagePolicy
from training.rl.rollouts import DISTINCT, LISTED, Rolling, Rollout, roll_out

ENTROPY: Final = "entropy.json"
"""File of a checkpoint: the entropy that the floor is a share of."""

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


class GrpoTrainer(AlignmentTrainer):
    """Rolls out, rewards, and moves the policy; see the module."""

    def __init__(
        self,
        *arguments: Any,
        options: PolicyArguments,
        reference: GeneratorPolicy | LanguagePolicy | None = None,
        told: Told | None = None,
        logged: LoggedLists | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, valid_beams=options.valid_beams, **more)
        self.options, self.reference, self.told, self.logged = options, reference, told, logged
        self.judged = logged is None  # rewards of shown lists may ask what was done with an item
        self.rolling = rolling(options, self.args)
        self._kept: list[Kept] = []
        self._step = 0  # within an update, where gradients accumulate
        self._first_entropy: float | None = None

    # the loop's parts, in the order of a step

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        if self.options.rollout == IMITATION:
            loss, said = self._imitated(model, inputs["event"].cpu().numpy())
        else:
            loss, said = self._reinforced(model, inputs["event"].cpu().numpy())
        return (loss, said) if return_outputs else loss

    def _imitated(self, model: Any, events: NDArray[np.int64]) -> tuple[Tensor, dict[str, Any]]:
        """The terms of what was bought alone."""
        device, requests = self.args.device, Requests.of(self.retriever.corpus, events)
        labels, told = self._told_of(requests)
        said = model(
            inputs=moved(self.policy.encode(requests), device), codes=labels[:, None], labels=labels, told=told
        )
        self.note("entropy", said["entropy"])
        return self._terms(said["terms"]), said

    def _reinforced(self, model: Any, events: NDArray[np.int64]) -> tuple[Tensor, dict[str, Any]]:
        """The policy loss of a rollout, and the terms of what was bought."""
        args, more = self.args, self.options
        place = self._step % args.gradient_accumulation_steps
        if self.state.global_step % args.num_iterations == 0:
            self._kept[place:] = [self.rolled(events)]
        self._step += 1
        kept = self._kept[place]
        rollout, device = kept.rollout, args.device
        labels = told = None
        if more.sft or more.karma:
            labels, told = self._told_of(kept.requests)
        words = {"words": True} if rollout.words else {}
        said = model(inputs=moved(rollout.inputs, device), codes=rollout.codes, labels=labels, told=told, **words)
        log_prob = said["log_prob"]
        if kept.old is None:
            kept.old = log_prob.detach()
        ratio = losses.importance_ratio(log_prob, kept.old, rollout.used, args.importance_sampling_level)
        extra = None
        if kept.reference is not None:
            apart = losses.divergence(log_prob, kept.reference, ratio if args.use_bias_correction_kl else None)
            extra = args.beta * apart
            self.note("kl", apart[rollout.used])
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
            codes_in_batch=self.accelerator.reduce(rollout.used.sum().float(), "mean"),
        )
        self.note("entropy", said["entropy"][rollout.used])
        self.note("ratio", ratio[rollout.there] if ratio.shape[-1] == 1 else ratio[rollout.used])
        return loss + self._terms(said["terms"]), said

    def _told_of(self, requests: Requests) -> tuple[Tensor, Any]:
        """(B, L) what was bought, and what KARMA's losses ask of it."""
        labels = torch.from_numpy(self.retriever.table.codes[requests.target].astype(np.int64)).to(self.args.device)
        return labels, None if self.told is None else moved(self.told(requests.event), self.args.device)

    def _terms(self, terms: dict[str, Tensor]) -> Tensor:
        """() the weighted sum of the terms of what was bought; 0 where there are none."""
        config, total = self.policy.model.config, torch.zeros((), device=self.args.device)
        for name, term in terms.items():
            self.note(name, term)
            total = total + term * (self.options.sft if name == "sft" else self.options.karma * getattr(config, name))
        return total

    def rolled(self, events: NDArray[np.int64]) -> Kept:
        """Answers of the policy to the searches behind events, and what they earned."""
        args, more, policy = self.args, self.options, self.policy
        requests = Requests.of(self.retriever.corpus, events)
        training = policy.training
        policy.eval()
        shown = None
        if self.logged is None:
            rollout = roll_out(policy, requests, self.rolling, args.seed, self.state.global_step)
        else:
            shown = self.logged(events)
            codes = torch.from_numpy(self.retriever.table.codes[shown.items].astype(np.int64)).to(args.device)
            used = torch.from_numpy(shown.items >= 0).to(args.device).unsqueeze(-1).expand(codes.shape)
            alike = torch.zeros(shown.items.shape, device=args.device)
            rollout = Rollout(policy.encode(requests), codes, used.clone(), shown.items, alike)
        if more.rollout in LISTED:
            weights = ListWeights(wanted=max(more.keyword_tokens // 2, 1))
            end = policy.reader.writer.words.tokenizer.eos_token_id if isinstance(policy, LanguagePolicy) else None
            total, each = reward_lists(rollout, requests, self.rewards, weights, end)
        else:
            earned = self.rewards(requests, rollout.items, self._seen_by_users(shown))
            total, each = torch.from_numpy(earned.total), earned.each
        total = total.to(rollout.codes.device)
        weighed = more.group_weights == "chance" or (more.group_weights == "auto" and more.rollout in DISTINCT)
        chance = rollout.chance if weighed else None
        spread = advantages.deviation(total, rollout.there, chance)
        self.note("frac_reward_zero_std", (spread <= 1e-8).float())
        self.note("reward", total[rollout.there] if chance is None else (total * chance).sum(-1))
        self.note("reward_std", spread)
        for name, one in each.items():
            self.note(f"rewards/{name}/mean", torch.from_numpy(one))
        gates = None
        if args.scale_rewards == "batch":
            everybody = self.accelerator.gather(total)
            advantage = advantages.group(total, rollout.there, "none", chance) / (everybody.std() + advantages.SPREAD)
        else:
            advantage = advantages.group(total, rollout.there, args.scale_rewards, chance)
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
                reference = self.reference(moved(rollout.inputs, args.device), rollout.codes, **words)["log_prob"]
        policy.train(training)
        return Kept(requests, rollout, advantage, gates, reference)

    def _seen_by_users(self, shown: Shown | None) -> dict[str, NDArray[Any]]:
        """(B, G) columns for the rewards: what was done with what was shown, and what doing it counts."""
        if shown is None:
            return {}
        if self.options.propensity == "none":
            return {"kind": shown.kinds}
        looked = examination(shown.ranks, self.options.propensity_eta)
        return {"kind": shown.kinds, "weight": inverse_propensity(looked, self.options.propensity_clip)}

    def _with_signal(self, spread: Tensor, number: int) -> Tensor | None:
        """DAPO's dynamic sampling: (number,) the groups to learn from, those with different rewards first."""
        if self.options.dynamic_sampling == 1:
            return None
        return (spread <= 1e-8).int().argsort(stable=True)[:number].sort().values

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        entropy = float(self.accelerator.reduce(torch.tensor(self._seen["entropy"][-1]), "mean"))  # all stop together
        if self._first_entropy is None:
            self._first_entropy = entropy
        if entropy < self.options.entropy_floor * self._first_entropy:
            told = (
                "the policy collapses: a choice has %.3f nats, it began with %.3f; stopping, the best weights are kept"
            )
            log.warning(told, entropy, self._first_entropy)
            self.control.should_training_stop = True
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        write_json(Path(output_dir or str(self.args.output_dir)) / ENTROPY, {"first": self._first_entropy})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._first_entropy = read_json(Path(resume_from_checkpoint) / ENTROPY)["first"]

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        args = self.args
        whole = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RepeatedBatches(len(train_dataset or self.train_dataset), whole, args.num_iterations, args.seed)


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
        log_prob=rollout.log_prob[rows],
        items=rollout.items[rows.cpu().numpy()],
    )
