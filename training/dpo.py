"""Listwise DPO: a winner against the losers of its list, relative to the model that the policy began as.

    accelerate launch training/dpo.py --config configs/demo/dpo.yaml --beta 0.1
    accelerate launch training/dpo.py --run runs/demo --lists log --rewards interaction

OneSearch's step from imitation to preference (https://arxiv.org/abs/2509.03236); `training/rl/dpo_loss.py` has the
formula. Each training search gives one list: what was bought, beside `losers` items which the starting model takes for
likely (`lists: model`, by the project's own search) or which the log has shown and nobody took (`lists: log`). Rewards
(`training/rl/rewards.py`, the reward model among them) say who wins and how far apart two are. As in
`training/grpo.py` weights are kept only where they beat those it began with by more than chance explains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.corpus import TRAIN, Requests
from onesearch.errors import UserError
from training.launch import Progress, ScriptArguments, parse_options, run_script
from training.rl.aligned import AlignmentTrainer, moved
from training.rl.best import WATCH_HELP, WATCHED
from training.rl.dpo_loss import listwise_dpo, reward_weights
from training.rl.logged import LoggedLists
from training.rl.policies import GeneratorPolicy, LanguagePolicy
from training.rl.rewards import Rewards
from training.rl.rollouts import Rolling, roll_out
from training.rl.start import align, begin


@dataclass
class PreferenceArguments:
    """Which model, and what it is taught to prefer."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a trained model."})
    start: str = field(default="sft", metadata={"help": "The stage that the policy starts from, and its reference."})
    stage: str = field(default="dpo", metadata={"help": "The model is written to models/STAGE of the run."})
    recent: float = field(default=0.6, metadata={"help": "Learn from this last share of the training events."})
    lists: str = field(default="model", metadata={"help": "Losers: likely ones by the model, or by the log."})
    losers: int = field(default=8, metadata={"help": "At most so many losers of a list."})
    winner: str = field(default="bought", metadata={"help": "What was bought, or the best by the rewards."})
    rewards: list[str] = field(default_factory=lambda: ["bought"], metadata={"help": "See training/grpo.py."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One for each reward; by default 1."})
    beta: float = field(default=0.1, metadata={"help": "How much a difference of log-probabilities counts."})
    alpha: float = field(default=1.5, metadata={"help": "How much harder near losers are pushed."})
    guard: float = field(default=0.0, metadata={"help": "c: what it costs that a winner becomes less likely."})
    sft: float = field(default=0.0, metadata={"help": "Weight of the cross-entropy of the winner."})
    valid_requests: int = field(default=4000, metadata={"help": "Held-out searches that choose the best weights."})
    valid_beams: int = field(default=32, metadata={"help": "Beam width of those searches."})
    watch: str = field(default="ndcg", metadata={"help": WATCH_HELP})
    margin: float = field(
        default=2.0, metadata={"help": "Keep weights only if better than the start by so many standard errors."}
    )
    patience: int = field(default=0, metadata={"help": "Stop after so many validations without a better one; 0 never."})


@dataclass
class DpoArguments(ScriptArguments):
    """`transformers.TrainingArguments` with defaults for alignment."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    per_device_train_batch_size: int = 64
    max_steps: int = 100
    warmup_steps: float = 5
    lr_scheduler_type: str = "constant_with_warmup"
    logging_steps: float = 5
    save_steps: float = 50
    eval_steps: float | None = 25
    eval_on_start: bool = True


class DpoTrainer(AlignmentTrainer):
    """Makes lists, and teaches the policy which item of each to prefer."""

    def __init__(
        self,
        *arguments: Any,
        options: PreferenceArguments,
        reference: GeneratorPolicy | LanguagePolicy,
        logged: LoggedLists | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, valid_beams=options.valid_beams, **more)
        self.options, self.reference, self.logged = options, reference, logged

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        options, device = self.options, self.args.device
        requests = Requests.of(self.retriever.corpus, inputs["event"].cpu().numpy())
        items = self.listed(requests)
        earned = torch.from_numpy(self.rewards(requests, items).total)
        if options.winner == "best":  # ties are the bought item's, which comes first
            items, earned = _first(items, earned)
        codes = torch.from_numpy(self.retriever.table.codes[items].astype(np.int64)).to(device)
        read = moved(self.policy.encode(requests), device)
        said = model(inputs=read, codes=codes)["log_prob"].sum(-1)
        with torch.no_grad():
            reference = self.reference(read, codes)["log_prob"].sum(-1)
        earned, there = earned.to(device), torch.from_numpy(items[:, 1:] >= 0).to(device)
        weights = reward_weights(earned[:, 0], earned[:, 1:], options.alpha)
        winner, losers = said[:, 0], said[:, 1:]
        each = listwise_dpo(
            winner, losers, reference[:, 0], reference[:, 1:], there, weights, options.beta, options.guard
        )
        loss = each.mean()
        if options.sft:
            loss = loss - options.sft * winner.mean()
        margin = ((winner - reference[:, 0]).unsqueeze(-1) - (losers - reference[:, 1:]))[there]
        self.note("margin", margin)
        self.note("accuracy", (margin > 0).float())
        self.note("losers", there.sum(-1).float())
        return (loss, {"log_prob": said}) if return_outputs else loss

    def listed(self, requests: Requests) -> NDArray[np.int64]:
        """(B, 1 + K) what was bought, and other items, -1 in empty places."""
        bought = requests.target.astype(np.int64)[:, None]
        if self.logged is None:
            rolling = Rolling(group=self.options.losers + 1)
            found = roll_out(self.reference, requests, rolling, self.args.seed, self.state.global_step).items
            order = np.argsort(found == bought, axis=1, kind="stable")  # where it is there it goes last, and out
            others = np.take_along_axis(found, order, 1)[:, : self.options.losers]
        else:
            shown = self.logged(requests.event)
            others = np.where((shown.kinds == 0) & (shown.items != bought), shown.items, -1)
        return np.hstack([bought, others])


def _first(items: NDArray[np.int64], earned: Tensor) -> tuple[NDArray[np.int64], Tensor]:
    """The lists with their best item in the first place."""
    best = earned.masked_fill(torch.from_numpy(items < 0), -torch.inf).argmax(1, keepdim=True)
    place = torch.arange(items.shape[1]).expand(items.shape).clone()
    place.scatter_(1, best, 0)
    place[:, :1] = best
    return np.take_along_axis(items, place.numpy(), 1), earned.gather(1, place)


def check(options: PreferenceArguments) -> None:
    """Every option can be.

    Raises:
        UserError: one cannot.
    """
    for name, values in {"lists": ("model", "log"), "winner": ("bought", "best"), "watch": WATCHED}.items():
        if getattr(options, name) not in values:
            remedy = f"known: {', '.join(values)}"
            raise UserError("unknown value", place=name, value=getattr(options, name), remedy=remedy)
    if options.losers < 1:
        raise UserError("must be 1 or more", place="losers", value=options.losers)
    if not options.beta > 0:
        raise UserError("must be above 0", place="beta", value=options.beta)


def train(options: PreferenceArguments, args: DpoArguments, progress: Progress | None = None) -> None:
    """Align a trained model of the run into `models/STAGE`; an interrupted training goes on."""
    check(options)
    start = begin(options, args)
    logged = None
    if options.lists == "log":
        known = start.retriever.table.on_sale
        logged = LoggedLists.of(start.corpus, np.flatnonzero(start.split == TRAIN), options.losers, known)
        start.keep(((shown := logged(start.events)).kinds == 0).any(1) & (shown.items >= 0).any(1))
    trainer = DpoTrainer(
        args=args,
        options=options,
        rewards=Rewards(options.rewards, options.reward_weights, start.known),
        reference=start.reference(None),
        logged=logged,
        **start.trainer_arguments,
    )
    align(trainer, start, options, progress)


def parse(arguments: list[str] | None = None) -> tuple[PreferenceArguments, DpoArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist, or one that cannot be.
    """
    options, args = parse_options((PreferenceArguments, DpoArguments), __doc__, arguments)
    check(options)
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/dpo.py`."""
    run_script(parse, train)


if __name__ == "__main__":
    main()
