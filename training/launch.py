"""How training scripts are started: as many processes as were asked for, with or without GPUs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from onesearch.errors import UserError

RANKS = ("RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""One of them tells a process that it is one of several."""


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
