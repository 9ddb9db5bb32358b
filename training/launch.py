"""What the training scripts share: their options, as many processes as were asked for, and going on where one was."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import json
import os
import shutil
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import TrlParser

from onesearch.errors import UserError, unknown
from onesearch.files import read_json, read_yaml, write_json
from onesearch.run import Run

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of `mallopt` in glibc's malloc.h."""

Progress = Callable[[int, int], None]
"""Called with (done, total) after each step."""

UNNAMED = "trainer_output"
"""What `TrainingArguments` puts where no output_dir is given."""

PLACES = ("output_dir", "logging_dir", "resume_from_checkpoint", "disable_tqdm")
"""Arguments that do not change what is learnt."""

RANKS = ("RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""One of them tells a process that it is one of several."""


@dataclass
class ScriptArguments(TrainingArguments):
    """`transformers.TrainingArguments` with what is the same for every script here."""

    output_dir: str | None = field(default=None, metadata={"help": "Checkpoints; by default models/STAGE of the run."})
    save_total_limit: int | None = 1
    eval_strategy: str = "steps"
    report_to: str = "none"
    use_cpu: bool = field(
        default=not torch.accelerator.is_available(),
        metadata={"help": "Use the CPU; by default where there is nothing else, so that several processes work there."},
    )
    remove_unused_columns: bool = False
    disable_tqdm: bool | None = True
    dataloader_pin_memory: bool = torch.cuda.is_available()  # the parser ignores a default_factory of a bool


def check_processes(environment: Mapping[str, str] = os.environ) -> None:
    """Stop where `accelerate launch --num_processes 2` quietly started one process.

    It does so on a machine without GPUs: it prepares the address for several processes and leaves starting them to MPI.
    Half of every batch would be missing.

    Raises:
        UserError: several processes were asked for, and this is the only one.
    """
    several = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_ADDR" in environment
    if several and not any(name in environment for name in RANKS):
        remedy = "add --multi_gpu: it starts the processes on the CPU where there is no GPU; or use torchrun"
        raise UserError("accelerate started one process instead of several", place="accelerate launch", remedy=remedy)


def check_whole(args: TrainingArguments, environment: Mapping[str, str] = os.environ) -> None:
    """Stop where FSDP would give every process a part of the weights.

    Raises:
        UserError: it would, and only language models are trained so.
    """
    if args.fsdp or environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        remedy = "launch with --multi_gpu: each process has room for all of it; FSDP is for fine-tuning language models"
        raise UserError("this model is not trained in shares", place="--use_fsdp", remedy=remedy)


def parse_options(kinds: tuple[type, ...], description: str | None, arguments: list[str] | None) -> tuple[Any, ...]:
    """Arguments of the command line over those of the YAML over the defaults, as one dataclass of each kind.

    Args:
        arguments: by default those of the process.

    Raises:
        UserError: the YAML has an option that does not exist.
    """
    parser = TrlParser(kinds, description=description, formatter_class=RawDescriptionHelpFormatter)
    given = sys.argv[1:] if arguments is None else list(arguments)
    if "--config" in given[:-1]:
        path = given[given.index("--config") + 1]
        known = {action.dest for action in parser._actions} | {"env"}
        for name in read_yaml(Path(path)):
            if name not in known:
                raise unknown("unknown option", name, known, path, otherwise="see --help for all options")
    return tuple(parser.parse_args_and_config(given))


def option(name: str, default: str, arguments: list[str] | None = None) -> str:
    """One option of the command line, or else of the YAML, or else its default, before anything is parsed.

    Args:
        arguments: by default those of the process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    for place, one in enumerate(given):
        if one.startswith(f"--{name}="):
            return one.split("=", 1)[1]
        if one == f"--{name}" and place + 1 < len(given):
            return given[place + 1]
    if name != "config" and (path := option("config", "", given)):
        return str(read_yaml(Path(path)).get(name, default))
    return default


def last_checkpoint(folder: Path, trainer: Trainer, basis: Mapping[str, Any]) -> str | None:
    """The last checkpoint in `folder` of an interrupted training with the same arguments and the same `basis`, if any.

    Args:
        basis: what else decides what is learnt, as JSON values.
    """
    settings = {name: value for name, value in trainer.args.to_dict().items() if name not in PLACES}
    whole = json.dumps({"arguments": settings, **basis}, sort_keys=True, default=str)
    key = {"sha256": hashlib.sha256(whole.encode()).hexdigest()}
    note = folder / "checkpoint.json"
    same = note.exists() and read_json(note) == key
    if trainer.is_world_process_zero():
        write_json(note, key)
    return get_last_checkpoint(str(folder)) if same else None


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a training that has ended."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / "checkpoint.json").unlink(missing_ok=True)


class Reporter(TrainerCallback):
    """Tells a progress callable how many steps are done."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps)


class Guarded(Trainer):
    """A `Trainer` that stops before weights become something else than numbers.

    Raises:
        UserError: a loss or a gradient that is not finite. The step is not made, so every checkpoint is a good one.
    """

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check("the loss", loss)
        return loss

    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        optimizer = super().create_optimizer(*arguments, **options)
        if not any(isinstance(one, _FiniteGradients) for one in self.callback_handler.callbacks):
            self.add_callback(_FiniteGradients(self))
        return optimizer

    def _check(self, what: str, value: torch.Tensor) -> None:
        if bool(torch.isfinite(value).all()):
            return
        kept = get_last_checkpoint(str(self.args.output_dir)) if Path(str(self.args.output_dir)).is_dir() else None
        remedy = "lower --learning_rate, or leave half precision" + (f"; the last checkpoint is {kept}" if kept else "")
        place = f"batch {self.state.global_step + 1}"
        raise UserError(f"{what} is not a finite number", place=place, value=float(value.sum()), remedy=remedy)


class _FiniteGradients(TrainerCallback):
    """Looks at the gradients before each step; the scaler of fp16 does that by itself."""

    def __init__(self, trainer: Guarded) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        gradients = [one.grad for one in given["model"].parameters() if one.grad is not None]
        if gradients and not args.fp16:
            self.trainer._check("a gradient", torch.stack([one.norm() for one in gradients]).sum())


@contextmanager
def enough_memory() -> Iterator[None]:
    """What runs out of memory inside becomes a `UserError` that says which options take less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        told = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError)
        if not told and "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        remedy = "halve --per_device_train_batch_size and double --gradient_accumulation_steps for the same result; "
        remedy += "or add --activation_checkpointing, or --bf16"
        raise UserError("out of memory", place="training", remedy=remedy) from error


@contextmanager
def held(run: Run) -> Iterator[None]:
    """Hold the run for writing; of several processes the first does.

    Raises:
        UserError: another training holds it.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
    else:
        with run.lock():
            yield


def fail(error: UserError) -> int:
    """Tell a mistake of the user in one line; the exit code is 2."""
    sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
    return 2


def run_script(
    parse: Callable[[], tuple[Any, Any]],
    train: Callable[[Any, Any], Any],
    show: Callable[[Any], None] | None = None,
    in_shares: bool = False,
) -> None:
    """The entry point of a script: `train` what `parse` reads, the run being held meanwhile.

    A mistake of the user ends the process with one line.

    Args:
        show: tells the user what `train` returned.
        in_shares: whether `train` can give every process a part of the weights (FSDP).
    """
    try:
        check_processes()
        options, args = parse()
        if not in_shares:
            check_whole(args)
        args.disable_tqdm = False
        with held(Run.open(options.run)), enough_memory():
            made = train(options, args)
    except UserError as error:
        end(fail(error))
    else:
        if show is not None:
            show(made)
        end(0)


def end(code: int) -> None:
    """End the script with this exit code."""
    if dist.is_initialized():
        leave(code)
    if code:
        raise SystemExit(code)


def leave(code: int) -> NoReturn:
    """End one of several processes at once, after what is registered for its end.

    An interpreter that is taken down lets go of the tensors of the last exchange. Where a thread of the exchange does
    so a moment later, it asks for an interpreter that is gone, and the process, which has written everything, is
    aborted: in nine of forty pairs of processes that made three steps of a linear layer (torch 2.13 with gloo;
    pytorch/pytorch#190489). Destroying the process group before is not enough, because a distributed model holds it
    too: five of sixty.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def keep_freed_memory() -> None:
    """Ask the C library to keep what tensors give back, instead of returning it to the system page by page.

    Without this a tenth of a training's time on a CPU goes into pages of fresh memory. Only glibc can be asked.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            library.mallopt(parameter, value)
