"""Where an alignment begins and ends: the run, the policy and what it learns from; the training; its stage."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from onesearch.corpus import VALID, Corpus, Requests, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.retriever import Retriever
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
from training.batches import Events
from training.launch import UNNAMED, Progress, Reporter, clear_checkpoints, keep_freed_memory, last_checkpoint
from training.rl.aligned import AlignmentTrainer
from training.rl.best import WATCHED, Best
from training.rl.policies import GeneratorPolicy, LanguagePolicy, policy_of
from training.rl.rewards import Known
from training.sft import periods

log = logging.getLogger(__name__)

BEST: Final = "best"
"""Folder of the best weights so far, beside the checkpoints."""


class Options(Protocol):
    """What every alignment is asked."""

    run: str
    start: str
    stage: str
    recent: float
    valid_requests: int
    valid_beams: int


@dataclass
class Start:
    """What is read of the run before the first step.

    Attributes:
        events: to learn from. before: known before them. split: (E,) of the corpus.
        held_out: validation searches.
    """

    run: Run
    options: Options
    temperature: float
    args: TrainingArguments
    retriever: Retriever
    policy: GeneratorPolicy | LanguagePolicy
    split: NDArray[np.int8]
    events: NDArray[np.int64]
    before: NDArray[np.int64]
    held_out: Requests

    @property
    def corpus(self) -> Corpus:
        return self.retriever.corpus

    @property
    def known(self) -> Known:
        """What rewards may look at."""
        return Known(self.run, self.corpus, self.retriever.table)

    def keep(self, chosen: NDArray[np.bool_]) -> None:
        """Learn from some of the events only.

        Raises:
            UserError: too few of them for one batch.
        """
        self.events = self.events[chosen]
        _check_size(self.events, self.args, self.run)

    def reference(self, folder: str | None) -> GeneratorPolicy | LanguagePolicy:
        """The start of the policy, or the same stage of another run, to be compared with.

        Raises:
            UserError: its SID table is another.
        """
        found = Retriever.load(folder or self.run.folder, self.options.start)
        if not _same(found.table, self.retriever.table):
            remedy = "use a reference that was trained on the same semantic IDs"
            raise UserError("the reference model has another SID table", place="reference", value=folder, remedy=remedy)
        policy = policy_of(found.reader, found.table, self.temperature, self.before)
        return policy.requires_grad_(False).to(self.args.device).eval()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Of every `AlignmentTrainer`."""
        return {
            "policy": self.policy,
            "retriever": self.retriever,
            "held_out": self.held_out,
            "train_dataset": Events(self.events),
            "eval_dataset": Events(self.held_out.event),
            "data_collator": collate,
        }


def begin(options: Options, args: Any, temperature: float = 1.0) -> Start:
    """Read the run.

    Raises:
        UserError: the stage would overwrite its start, there is too little to learn from, or the model's kind cannot
            be aligned.
    """
    keep_freed_memory()
    run = Run.open(options.run)
    if options.stage == options.start:
        raise UserError("would overwrite its start", place="stage", value=options.stage, remedy="name another")
    if args.output_dir == UNNAMED:
        args.output_dir = str(run.folder / "models" / options.stage)
    transformers.set_seed(args.seed)
    retriever = Retriever.load(run.folder, options.start)
    corpus, table = retriever.corpus, retriever.table
    split = make_split(corpus, run.settings.split)
    events, before = periods(corpus, split, options.recent)
    events = events[np.isin(corpus.item[events], table.on_sale)]
    _check_size(events, args, run)
    try:
        policy = policy_of(retriever.reader, table, temperature, before)
    except TypeError as error:
        remedy = "start from a generator or a language model"
        raise UserError(str(error), place="start", value=options.start, remedy=remedy) from None
    held_out = sample_requests(corpus, split, VALID, options.valid_requests, args.seed)
    return Start(run, options, temperature, args, retriever, policy, split, events, before, held_out)


def align(trainer: AlignmentTrainer, start: Start, options: Any, progress: Progress | None) -> None:
    """Train, and write the best weights as the stage's model.

    Args:
        options: a dataclass, with `watch`, `patience` and `margin` (see `Best`); a training with others does not go on
            where this one was interrupted.
    """
    run, args = start.run, start.args
    if progress is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    target, checkpoints = run.folder / "models" / start.options.stage, Path(str(args.output_dir))
    best = Best(trainer, checkpoints / BEST, options.watch, options.patience, options.margin)
    if args.eval_strategy == "no":
        args.eval_on_start = False  # what is validated once only is not the best of anything
    else:
        trainer.add_callback(best)
    basis = {
        "policy": dataclasses.asdict(options),
        "sid": stamps(run.folder / "sid"),
        "start": stamps(run.folder / "models" / start.options.start),
    }
    resumed = args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis)
    if resumed is None and trainer.is_world_process_zero():
        best.forget()
    trainer.train(resume_from_checkpoint=resumed)
    if not trainer.is_world_process_zero():
        return
    policy, known = trainer.policy, best.known
    if known is not None:
        best.restore()
        if known["step"] == 0:
            log.warning("no validation was better than chance explains: the model is the one it began with")
        else:
            found = {spelt: known.get(f"eval_{name}@10") for name, spelt in WATCHED.items()}
            told = ", ".join(f"{spelt} {value:.4f}" for spelt, value in found.items() if value is not None)
            log.info("the best validation was at step %d: %s", known["step"], told)
        trainer.state.log_history.append({"step": trainer.state.global_step, "kept_step": known["step"]})
    policy.eval()
    policy.serve()
    policy.save(target)
    write_json(target / "log_history.json", trainer.state.log_history)
    clear_checkpoints(checkpoints)
    best.forget()


def collate(events: Sequence[int]) -> dict[str, Tensor]:
    """Events; the trainer makes of them what it needs."""
    return {"event": torch.tensor(events, dtype=torch.int64)}


def _check_size(events: NDArray[np.int64], args: TrainingArguments, run: Run) -> None:
    if len(events) < args.train_batch_size * args.world_size:
        raise UserError(
            "fewer training events than one batch",
            place=run.folder / "corpus",
            value=len(events),
            remedy="lower --per_device_train_batch_size",
        )


def _same(one: SidTable, other: SidTable) -> bool:
    return one.item_ids.equals(other.item_ids) and np.array_equal(one.codes, other.codes)
