"""A launcher that started fewer processes than it was asked for is noticed, and one of several processes ends well."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import TrainingArguments

from onesearch.errors import UserError
from training.launch import check_processes, check_whole, end

ROOT = Path(__file__).parents[2]
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}

ONE_OF_SEVERAL = """
import atexit, sys
import torch.distributed as dist
from training.launch import end

class Told:
    def __del__(self):
        print("the interpreter was taken down")

atexit.register(print, "the tracker was closed")
told = Told()
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
end(int(sys.argv[1]))
"""


def test_one_process_instead_of_several_is_told() -> None:
    with pytest.raises(UserError, match=r"one process instead of several .*--multi_gpu"):
        check_processes({**ACCELERATE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        ACCELERATE,
        {"MASTER_ADDR": "10.0.0.1"},
        {**ACCELERATE, "MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "2"},
        {**ACCELERATE, "MASTER_ADDR": "127.0.0.1", "OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_what_was_asked_for_is_fine(environment: dict[str, str]) -> None:
    check_processes(environment)


def test_a_model_that_is_not_trained_in_shares_says_what_to_do(tmp_path: Path) -> None:
    whole = TrainingArguments(output_dir=str(tmp_path))
    check_whole(whole, {"ACCELERATE_USE_FSDP": "false"})
    with pytest.raises(UserError, match=r"--use_fsdp: .*launch with --multi_gpu"):
        check_whole(whole, {"ACCELERATE_USE_FSDP": "true"})


@pytest.mark.parametrize("code", [0, 2])
def test_one_of_several_processes_ends_before_its_interpreter_is_taken_down(code: int) -> None:
    """Threads of the process group would abort it then, now and then; what is registered for the end is done."""
    process = subprocess.run(
        [sys.executable, "-c", ONE_OF_SEVERAL, str(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (code, "the tracker was closed\n"), process.stderr


def test_a_process_by_itself_ends_as_any_does() -> None:
    end(0)
    with pytest.raises(SystemExit) as ended:
        end(2)
    assert ended.value.code == 2
