"""A launcher that started fewer processes than it was asked for is noticed."""

from pathlib import Path

import pytest
from transformers import TrainingArguments

from onesearch.errors import UserError
from training.launch import check_processes, check_whole

ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


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
