"""Alignment by rewards: the GRPO family, for the project's own generator and for language models.

    accelerate launch training/grpo.py --config configs/demo/grpo.yaml --learning_rate 1e-4
    accelerate launch --multi_gpu --num_processes 2 training/grpo.py --run runs/demo --loss_type dapo

The policy starts from a trained stage (`start`), answers training searches with samples of the project's own search,
which rewards judge, and moves towards the better ones of each group. Every `eval_steps` it is validated on held-out
searches; the best weights are kept, those it began with among them, so that it never ends below where it began by that
measure. Names of options are `trl.GRPOConfig`'s; batch sizes count searches, each with `num_generations` samples.

    loss                 options                                      (training/rl/losses.py, advantages.py)
    GRPO                 loss_type: grpo
    Dr. GRPO             loss_type: dr_grpo, scale_rewards: none
    DAPO                 loss_type: dapo, epsilon_high: .28, dynamic_sampling: 2
    GSPO                 loss_type: grpo, importance_sampling_level: sequence
    ECPO, GBPO           loss_type: ecpo, or gbpo
    TPMA                 loss_type: tpma, advantage: position, or prefix
    list-reward GRPO     rollout: list, or keywords                   (training/rl/lists.py)

All but the first differ from it only where `num_iterations` is 2 or more, or in their advantages.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Final

import numpy as np
import transformers
from transformers.trainer_callback import PrinterCallback

from onesearch.corpus import TRAIN, VALID, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.retriever import Retriever
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
from training.batches import Events
from training.karma import Told
from training.launch import (
    UNNAMED,
    Progress,
    Reporter,
    check_processes,
    clear_checkpoints,
    enough_memory,
    fail,
    held,
    keep_freed_memory,
    last_checkpoint,
    parse_options,
)
from training.rl.best import WATCHED, Best, load_weights
from training.rl.options import GrpoArguments, PolicyArguments, check
from training.rl.policies import GeneratorPolicy, LanguagePolicy, policy_of
from training.rl.rewards import Known, Rewards
from training.rl.trainer import GrpoTrainer, collate
from training.sft import periods

log = logging.getLogger(__name__)

BEST: Final = "best"
"""Folder of the best weights so far, beside the checkpoints."""


def train(options: PolicyArguments, args: GrpoArguments, progress: Progress | None = None) -> None:
    """Align a trained model of the run into `models/STAGE`; an interrupted training goes on."""
    check(options, args)
    keep_freed_memory()
    run = Run.open(options.run)
    target = run.folder / "models" / options.stage
    if options.stage == options.start:
        raise UserError("would overwrite its start", place="stage", value=options.stage, remedy="name another")
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    transformers.set_seed(args.seed)
    retriever = Retriever.load(run.folder, options.start)
    corpus, table = retriever.corpus, retriever.table
    split = make_split(corpus, run.settings.split)
    events, before = periods(corpus, split, options.recent)
    events = events[np.isin(corpus.item[events], table.on_sale)]
    if len(events) < args.train_batch_size * args.world_size:
        raise UserError(
            "fewer training events than one batch",
            place=run.folder / "corpus",
            value=len(events),
            remedy="lower --per_device_train_batch_size",
        )
    try:
        policy = policy_of(retriever.reader, table, args.temperature, before)
    except TypeError as error:
        remedy = "start from a generator or a language model"
        raise UserError(str(error), place="start", value=options.start, remedy=remedy) from None
    if options.rollout == "keywords" and not isinstance(policy, LanguagePolicy):
        remedy = "start from a language model, or use rollout: list"
        raise UserError("only a language model says keywords", place="rollout", value="keywords", remedy=remedy)
    told = None
    if options.karma:
        if not isinstance(policy, GeneratorPolicy) or policy.model.interest is None:
            remedy = "train one with interest: 64"
            raise UserError("the model has no interest head", place="karma", value=options.karma, remedy=remedy)
        told = Told(policy.builder, events, split == TRAIN)
    reference = None
    if args.beta:
        other = retriever_of(options.reference or options.run, options.start, table)
        reference = (
            policy_of(other.reader, table, args.temperature, before).requires_grad_(False).to(args.device).eval()
        )
    held_out = sample_requests(corpus, split, VALID, options.valid_requests, args.seed)
    trainer = GrpoTrainer(
        args=args,
        policy=policy,
        reference=reference,
        options=options,
        rewards=Rewards(options.rewards, args.reward_weights, Known(run, corpus, table)),
        retriever=retriever,
        held_out=held_out,
        told=told,
        train_dataset=Events(events),
        eval_dataset=Events(held_out.event),
        data_collator=collate,
    )
    if progress is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    checkpoints = Path(str(args.output_dir))
    best = Best(policy, checkpoints / BEST, options.patience)
    trainer.add_callback(best)
    basis = {
        "policy": dataclasses.asdict(options),
        "sid": stamps(run.folder / "sid"),
        "start": stamps(run.folder / "models" / options.start),
    }
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis))
    if trainer.is_world_process_zero():
        _finish(trainer, best, target, checkpoints)


def _finish(trainer: GrpoTrainer, best: Best, target: Path, checkpoints: Path) -> None:
    """Write the best weights as the stage's model."""
    policy, known = trainer.policy, best.known
    if known is not None:
        load_weights(policy, best.folder / "weights.safetensors")
        if known["step"] == 0:
            log.warning("no validation was better than that before the first step: the model is the one it began with")
        else:
            log.info("the best validation was at step %d: ndcg@10 %.4f", known["step"], known[WATCHED])
        trainer.state.log_history.append({"step": trainer.state.global_step, "kept_step": known["step"]})
    policy.eval()
    policy.serve()
    policy.save(target)
    write_json(target / "log_history.json", trainer.state.log_history)
    clear_checkpoints(checkpoints)
    for name in ("weights.safetensors", "best.json"):
        (best.folder / name).unlink(missing_ok=True)
    if best.folder.exists():
        best.folder.rmdir()


def retriever_of(run: str, stage: str, table: SidTable) -> Retriever:
    """The reference: the stage of a run.

    Raises:
        UserError: its SID table is another.
    """
    found = Retriever.load(run, stage)
    same = found.table.codes.shape == table.codes.shape and bool((found.table.codes == table.codes).all())
    if not same or not found.table.item_ids.equals(table.item_ids):
        remedy = "use a reference that was trained on the same semantic IDs"
        raise UserError("the reference model has another SID table", place="reference", value=run, remedy=remedy)
    return found


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
    try:
        check_processes()
        options, args = parse()
        args.disable_tqdm = False
        with held(Run.open(options.run)), enough_memory():
            train(options, args)
    except UserError as error:
        raise SystemExit(fail(error)) from None


if __name__ == "__main__":
    main()
