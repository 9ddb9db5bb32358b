"""A training in several processes of this machine, each with a part of every batch and of the cores.

Without a GPU two processes with one thread are quicker than one process with two: matrices of a small model are hardly
worth dividing, and what is no matrix product is not divided at all (docs/results.md). The processes are those that
`torchrun` would start; here the first one's progress and warnings come back, and so does its mistake in one line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO, Any, Final

import torch
import torch.distributed as dist
import transformers

from onesearch.errors import UserError
from training.launch import Progress, enough_memory, fail, leave

log = logging.getLogger(__name__)

PACKAGES: Final = ("onesearch", "quantizers", "training", "eval")

WORDS: Final = 4000
"""Characters of what a process wrote before it failed that are shown."""


def train_together(kind: str, arguments: Sequence[str], processes: int, progress: Progress) -> None:
    """Train in several processes, which are gone when this returns or raises; or here, where there is a GPU or a batch
    that cannot be shared equally.

    Args:
        kind: the training, a name of `TRAININGS`.
        arguments: of its script, for one process.
        processes: at most so many.

    Raises:
        UserError: what a process would have said.
        RuntimeError: a process failed otherwise.
    """
    train, options, args = TRAININGS[kind](arguments)
    processes = 1 if torch.accelerator.is_available() else math.gcd(processes, args.per_device_train_batch_size)
    if processes == 1:
        transformers.utils.logging.disable_progress_bar()
        train(options, args, progress)
    else:
        _start(["-m", "training.processes", kind, *arguments], processes, progress)


def _start(command: Sequence[str], processes: int, progress: Progress) -> None:
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes)),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    started: list[subprocess.Popen[str]] = []
    with ExitStack() as open_files:
        files = [open_files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(processes)]
        try:
            for rank, words in enumerate(files):
                out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
                ranked = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env=ranked,
                        stdin=subprocess.PIPE,
                        stdout=out,
                        stderr=words,
                        text=True,
                        bufsize=1,
                    )
                )
            for one in started:  # one that fails would leave the others waiting for it
                threading.Thread(target=_end_with, args=(one, started), daemon=True).start()
            assert started[0].stdout is not None
            for line in started[0].stdout:
                told = json.loads(line)
                if isinstance(told, str):
                    log.warning(told)
                else:
                    progress(*told)
            codes = [one.wait() for one in started]
        finally:
            for one in started:
                one.kill()
                one.wait()
        if any(codes):
            raise _failure(codes, [_content(words) for words in files])


def _end_with(process: subprocess.Popen[str], others: Sequence[subprocess.Popen[str]]) -> None:
    if process.wait():
        for one in others:
            one.kill()


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _failure(codes: Sequence[int], said: Sequence[str]) -> Exception:
    lines = [line for text in said for line in text.splitlines()]
    told = [line.removeprefix("onesearch: ") for line in lines if line.startswith("onesearch: ")]
    if told:
        return UserError(told[0])
    failed = [(code, text) for code, text in zip(codes, said, strict=True) if code]
    code, text = min(failed, key=lambda one: one[0] == -signal.SIGKILL)  # those that others failed were killed
    return RuntimeError(f"a process of the training ended with {code}: {text[-WORDS:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _generator(arguments: Sequence[str]) -> tuple[Callable[..., Any], Any, Any]:
    from training.sft import training_of

    return training_of(list(arguments))


def _alignment(arguments: Sequence[str]) -> tuple[Callable[..., Any], Any, Any]:
    from training import grpo

    return grpo.train, *grpo.parse(list(arguments))


TRAININGS: Final = {"sft": _generator, "grpo": _alignment}
"""A name gives what to call, and what to call it with, for the arguments of a script."""


def _exit_with_the_parent() -> None:
    """Its end closes the standard input of this process, however it ended."""
    sys.stdin.read()
    os._exit(1)


class _Warnings(logging.Handler):
    """Tells the parent what this project warns of; libraries speak of a training in several processes."""

    def __init__(self, told: IO[str]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.split(".")[0] in PACKAGES:
            self._told.write(json.dumps(record.getMessage()) + "\n")


def main() -> int:
    """One of the processes. Its standard output is for progress and warnings, and what libraries print goes to standard
    error, which is read if it fails."""
    threading.Thread(target=_exit_with_the_parent, daemon=True).start()
    transformers.utils.logging.disable_progress_bar()
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.getLogger().addHandler(_Warnings(told))

    def tell(done: int, total: int) -> None:
        told.write(json.dumps([done, total]) + "\n")

    kind, *arguments = sys.argv[1:]
    try:
        train, options, args = TRAININGS[kind](arguments)
        args.per_device_train_batch_size //= int(os.environ["WORLD_SIZE"])
        with enough_memory():
            train(options, args, tell)
    except UserError as error:
        return fail(error)
    if dist.is_initialized():  # the first one keeps the store that the others ask
        dist.barrier()
    return 0


if __name__ == "__main__":
    leave(main())
