"""The options of alignment, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, get_args

from onesearch.errors import UserError, unknown
from training.launch import ScriptArguments
from training.rl import advantages, losses
from training.rl.best import WATCH_HELP, WATCHED
from training.rl.rollouts import DISTINCT, KINDS, LISTED

ADVANTAGES: Final = ("group", "position", "prefix")
LOG: Final = "log"
"""The rollout that is none: what the log has shown."""
IMITATION: Final = "none"
"""No rollout: what was bought is imitated."""


@dataclass
class PolicyArguments:
    """Which model, what it answers, and what that earns."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a trained model."})
    start: str = field(default="sft", metadata={"help": "The stage that the policy starts from."})
    stage: str = field(default="grpo", metadata={"help": "The model is written to models/STAGE of the run."})
    reference: str | None = field(
        default=None, metadata={"help": "Run folder of the reference model, if not the policy's own start."}
    )
    recent: float = field(default=0.1, metadata={"help": "Learn from this last share of the training events."})
    events: str | None = field(
        default=None, metadata={"help": "Learn from these only: Parquet with a column `event`, row numbers of the log."}
    )
    rewards: list[str] = field(
        default_factory=lambda: ["bought"],
        metadata={"help": "bought, prefix, category, interaction, model, or package.module:function."},
    )
    rollout: str = field(default="distinct", metadata={"help": "distinct, sample, beam, list, keywords, log or none."})
    shown: str | None = field(
        default=None, metadata={"help": "With rollout: log, a Parquet file of lists, not the corpus's own impressions."}
    )
    propensity: str = field(
        default="none", metadata={"help": "With rollout: log, weigh clicks by the inverse chance to look: position."}
    )
    propensity_eta: float = field(default=1.0, metadata={"help": "A rank is looked at with (1 + rank)^-eta."})
    propensity_clip: float = field(default=10.0, metadata={"help": "No weight is more than this."})
    advantage: str = field(
        default="group", metadata={"help": "group; or TPMA's: position as published, prefix where all before match."}
    )
    group_weights: str = field(
        default="auto",
        metadata={"help": "Samples count even, or by their chance in the group; auto: by chance if they are distinct."},
    )
    position_weights: list[float] = field(
        default_factory=lambda: [2.0, 2.0, 1.0, 1.0, 0.0], metadata={"help": "TPMA's weight of each code."}
    )
    group_weight: float = field(
        default=1.0, metadata={"help": "TPMA's weight of the group advantage beside that of each code."}
    )
    list_length: int = field(default=10, metadata={"help": "Items of a list."})
    list_depth: int = field(default=1, metadata={"help": "Codes of the beginning that a list follows from."})
    list_follow: str = field(
        default="nothing", metadata={"help": "After a beginning learn nothing, or its best item's other codes."}
    )
    keyword_tokens: int = field(default=12, metadata={"help": "At most so many tokens of keywords."})
    early: float = field(default=0.1, metadata={"help": "ECPO's delta."})
    dynamic_sampling: int = field(
        default=1, metadata={"help": "Roll out so many times the searches, and learn from those with a signal."}
    )
    sft: float = field(default=0.0, metadata={"help": "Weight of the cross-entropy of what was bought."})
    karma: float = field(default=0.0, metadata={"help": "Weight of KARMA's losses, as the model's config weighs them."})
    beams: int = field(default=32, metadata={"help": "Beam width of rollouts that search."})
    valid_requests: int = field(default=4000, metadata={"help": "Held-out searches that choose the best weights."})
    valid_beams: int = field(default=32, metadata={"help": "Beam width of those searches."})
    watch: str = field(default="ndcg", metadata={"help": WATCH_HELP})
    margin: float = field(
        default=2.0, metadata={"help": "Keep weights only if better than the start by so many standard errors."}
    )
    patience: int = field(default=0, metadata={"help": "Stop after so many validations without a better one; 0 never."})
    entropy_floor: float = field(
        default=0.0,
        metadata={"help": "Stop where the mean entropy of a choice (nats) falls below this share of the first."},
    )


@dataclass
class GrpoArguments(ScriptArguments):
    """`transformers.TrainingArguments` with defaults for alignment, and the options of `trl.GRPOConfig`."""

    num_generations: int = field(default=16, metadata={"help": "Samples of each search."})
    temperature: float = field(default=1.0, metadata={"help": "Of sampling, and of the policy that learns."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the reference."})
    use_bias_correction_kl: bool = field(default=True, metadata={"help": "Weigh it by the importance ratios."})
    num_iterations: int = field(default=1, metadata={"help": "Updates for each rollout."})
    epsilon: float = field(default=0.2, metadata={"help": "Ratios count down to 1 - epsilon."})
    epsilon_high: float | None = field(default=None, metadata={"help": "And up to 1 + this; by default epsilon."})
    delta: float | None = field(default=None, metadata={"help": "A bound of all ratios from above."})
    loss_type: str = field(default="grpo", metadata={"help": f"One of {', '.join(losses.LOSS_TYPES)}."})
    importance_sampling_level: str = field(default="token", metadata={"help": "Ratios of each token, or sequence."})
    scale_rewards: str = field(default="group", metadata={"help": "Divide by the deviation of: group, batch, none."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One for each reward; by default 1."})
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    per_device_train_batch_size: int = 128
    max_steps: int = 30
    warmup_steps: float = 5
    lr_scheduler_type: str = "constant_with_warmup"
    logging_steps: float = 5
    save_steps: float = 50
    eval_steps: float | None = 15
    eval_on_start: bool = True


def check(options: PolicyArguments, args: GrpoArguments) -> None:
    """Every option can be, and goes with the others.

    Raises:
        UserError: one does not.
    """
    known = {
        "loss_type": (args.loss_type, losses.LOSS_TYPES),
        "importance_sampling_level": (args.importance_sampling_level, get_args(losses.Level)),
        "scale_rewards": (args.scale_rewards, get_args(advantages.Scale)),
        "rollout": (options.rollout, (*KINDS, LOG, IMITATION)),
        "group_weights": (options.group_weights, ("auto", "even", "chance")),
        "propensity": (options.propensity, ("none", "position")),
        "advantage": (options.advantage, ADVANTAGES),
        "list_follow": (options.list_follow, ("nothing", "best")),
        "watch": (options.watch, WATCHED),
    }
    for name, (value, values) in known.items():
        if value not in values:
            raise unknown("unknown value", value, values, name)
    if options.group_weights == "chance" and options.rollout not in DISTINCT:
        problem, remedy = "independent draws are as frequent as they are likely already", "use even"
        raise UserError(problem, place="group_weights", value="chance", remedy=remedy)
    if options.rollout == IMITATION and not (options.sft or options.karma):
        raise UserError("nothing to learn", place="rollout", value=IMITATION, remedy="give sft or karma a weight")
    if args.num_generations < 2:
        remedy = "use 2 or more"
        raise UserError(
            "a group of one has nobody to be compared with",
            place="num_generations",
            value=args.num_generations,
            remedy=remedy,
        )
    counts = {"num_iterations": args.num_iterations, "dynamic_sampling": options.dynamic_sampling}
    for name, number in counts.items():
        if number < 1:
            raise UserError("must be 1 or more", place=name, value=number)
    if not args.temperature > 0:
        raise UserError("must be above 0", place="temperature", value=args.temperature)
    if args.per_device_train_batch_size % options.dynamic_sampling:
        remedy = "use a divisor of per_device_train_batch_size"
        raise UserError(
            "does not divide the batch", place="dynamic_sampling", value=options.dynamic_sampling, remedy=remedy
        )
    if args.save_strategy != "no" and args.save_steps % args.num_iterations:
        remedy = (
            f"use a multiple of {args.num_iterations}, so that no rollout is lost between a checkpoint and the next"
        )
        raise UserError("does not fit num_iterations", place="save_steps", value=args.save_steps, remedy=remedy)
    if options.advantage != "group" and options.rollout in LISTED:
        remedy = "use rollout: distinct"
        raise UserError(
            "only single items match position by position", place="advantage", value=options.advantage, remedy=remedy
        )
    _check_logged(options, args)
    if args.loss_type == "gbpo" and args.importance_sampling_level == "sequence":
        raise UserError(
            "gbpo bounds each code's ratio", place="importance_sampling_level", value="sequence", remedy="use token"
        )


def _check_logged(options: PolicyArguments, args: GrpoArguments) -> None:
    """What is told of lists that were shown needs such lists, and something that it changes."""
    for name, default in (("shown", None), ("propensity", "none")):
        if getattr(options, name) != default and options.rollout != LOG:
            remedy = f"use rollout: {LOG}"
            raise UserError(
                "only lists that were shown have it", place=name, value=getattr(options, name), remedy=remedy
            )
    if options.rollout == LOG and options.watch == "reward":
        problem, remedy = "lists that were shown do not say what others would earn", "use watch: ndcg"
        raise UserError(problem, place="watch", value=options.watch, remedy=remedy)
    if options.propensity == "none":
        return
    if not options.propensity_eta >= 0 or not options.propensity_clip >= 1:
        place, value = "propensity_eta, propensity_clip", (options.propensity_eta, options.propensity_clip)
        raise UserError("a chance cannot be", place=place, value=value, remedy="use at least 0 and at least 1")
    if not any(name == "interaction" or ":" in name for name in options.rewards):
        remedy = "use rewards: [interaction]"
        raise UserError("no reward depends on who looked", place="propensity", value=options.rewards, remedy=remedy)
    if args.scale_rewards == "group":
        remedy = "use scale_rewards: batch, or none"
        raise UserError(
            "divides each list by the deviation that its weights make, which takes them back",
            place="scale_rewards",
            value=args.scale_rewards,
            remedy=remedy,
        )
