"""Alignment by rewards: the GRPO family, for the project's own generator and for language models.

    accelerate launch training/grpo.py --config configs/demo/grpo.yaml --learning_rate 1e-4
    accelerate launch --multi_gpu --num_processes 2 training/grpo.py --run runs/demo --loss_type dapo

The policy starts from a trained stage (`start`), answers training searches with samples of the project's own search,
which rewards judge, and moves towards the better ones of each group. Every `eval_steps` it is validated on held-out
searches; weights are kept only where they beat those that it began with by more than chance explains. Names of options
are `trl.GRPOConfig`'s; batch sizes count searches, each with `num_generations` samples.

    loss                 options                                      (training/rl/losses.py, advantages.py)
    GRPO                 loss_type: grpo
    Dr. GRPO             loss_type: dr_grpo, scale_rewards: none
    DAPO                 loss_type: dapo, epsilon_high: .28, dynamic_sampling: 2
    GSPO                 loss_type: grpo, importance_sampling_level: sequence
    ECPO, GBPO           loss_type: ecpo, or gbpo
    TPMA                 loss_type: tpma, advantage: position, or prefix
    list-reward GRPO     rollout: list, or keywords                   (training/rl/lists.py)
    logged lists         rollout: log, rewards: [interaction]         (training/rl/logged.py)

All but the first differ from it only where `num_iterations` is 2 or more, or in their advantages.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.errors import UserError
from onesearch.run import Run
from training.karma import Told
from training.launch import Progress, parse_options, run_script
from training.processes import train_together
from training.rl.logged import LoggedLists
from training.rl.options import LOG, GrpoArguments, PolicyArguments, check
from training.rl.policies import GeneratorPolicy, LanguagePolicy
from training.rl.rewards import Rewards
from training.rl.start import align, begin
from training.rl.trainer import GrpoTrainer
from training.sft import periods


def train(options: PolicyArguments, args: GrpoArguments, progress: Progress | None = None) -> None:
    """Align a trained model of the run into `models/STAGE`; an interrupted training goes on."""
    check(options, args)
    start = begin(options, args, args.temperature)
    told = logged = reference = None
    if options.events is not None:
        start.keep(np.isin(start.events, read_events(Path(options.events))))
    policy, corpus = start.policy, start.corpus
    if options.rollout == "keywords" and not isinstance(policy, LanguagePolicy):
        remedy = "start from a language model, or use rollout: list"
        raise UserError("only a language model says keywords", place="rollout", value="keywords", remedy=remedy)
    if options.rollout == LOG:
        most, on_sale = args.num_generations, start.retriever.table.on_sale
        if options.shown is None:
            logged = LoggedLists.of(corpus, np.flatnonzero(start.split == TRAIN), most, on_sale)
        else:
            logged = LoggedLists.read(Path(options.shown), corpus, most, on_sale)
        start.keep((logged(start.events).items >= 0).sum(1) > 1)
    if options.karma:
        if not isinstance(policy, GeneratorPolicy) or policy.model.interest is None:
            remedy = "train one with interest: 64"
            raise UserError("the model has no interest head", place="karma", value=options.karma, remedy=remedy)
        told = Told(policy.builder, start.events, start.split == TRAIN)
    if args.beta:
        reference = start.reference(options.reference)
    trainer = GrpoTrainer(
        args=args,
        options=options,
        rewards=Rewards(options.rewards, args.reward_weights, start.known),
        reference=reference,
        told=told,
        logged=logged,
        **start.trainer_arguments,
    )
    align(trainer, start, options, progress)


def read_events(path: Path) -> NDArray[np.int64]:
    """Row numbers of the log.

    Raises:
        UserError: no such file, or one without a column `event` of integers.
    """
    try:
        return pl.read_parquet(path, columns=["event"])["event"].cast(pl.Int64).to_numpy()
    except (OSError, pl.exceptions.PolarsError) as error:
        remedy = "give a Parquet file with a column `event`"
        raise UserError(str(error).splitlines()[0], place=path, remedy=remedy) from error


def train_run(run: Run, progress: Progress) -> None:
    """The alignment step of a run: the YAML that its settings name, or the defaults, with the run's seed."""
    config = [] if run.settings.grpo is None else ["--config", run.settings.grpo]
    arguments = [*config, "--run", str(run.folder), "--seed", str(run.settings.seed)]
    options, args = parse(arguments)
    corpus = Corpus.load(run.folder / "corpus")
    events, _ = periods(corpus, make_split(corpus, run.settings.split), options.recent)
    if 0 < len(events) < args.per_device_train_batch_size:  # a small log
        arguments += ["--per_device_train_batch_size", str(len(events))]
    train_together("grpo", arguments, run.settings.processes, progress)


def parse(arguments: list[str] | None = None) -> tuple[PolicyArguments, GrpoArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist, or options that do not go together.
    """
    options, args = parse_options((PolicyArguments, GrpoArguments), __doc__, arguments)
    check(options, args)
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/grpo.py`."""
    run_script(parse, train)


if __name__ == "__main__":
    main()
