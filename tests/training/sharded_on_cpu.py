"""What tests let `accelerate launch --use_fsdp` start: `training/sft.py`, with accelerate told that its processes have
GPUs, without which it does not shard. All else is what happens on GPUs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

ROOT = Path(__file__).parents[2]


def shard_without_gpus() -> None:
    begin = AcceleratorState.__init__

    def begin_as_on_gpus(self: AcceleratorState, *arguments: Any, **options: Any) -> None:
        if PartialState._shared_state.get("distributed_type") != DistributedType.FSDP:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        begin(self, *arguments, **options)

    AcceleratorState.__init__ = begin_as_on_gpus


if __name__ == "__main__":
    shard_without_gpus()
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / "training/sft.py"), run_name="__main__")
