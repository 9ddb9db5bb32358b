"""Started by torchrun in `test_fsdp.py`: a few steps with weights and gradients split over the processes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from language_models import level_starts
from test_objective import SIZES, batch, with_dropout
from torch.distributed.fsdp import fully_shard

from training.objective import Objective, Terms
from training.tuning import gathered


def losses(shard: bool, rank: int, world: int) -> list[float]:
    """The loss of each of four steps, and of the gathered model after them; each process has a part of the examples."""
    objective = Objective(with_dropout(0.0), level_starts(SIZES), SIZES, Terms()).train()
    whole = {name: torch.cat([value, value.flip(0)])[:4] for name, value in batch(objective._core[0]).items()}
    part = {name: value[rank::world] for name, value in whole.items()}
    if shard:
        for stack in (objective._core[0].model.encoder, objective._core[0].model.decoder):
            for layer in stack.layers:
                fully_shard(layer)
        fully_shard(objective)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = objective(**part)["loss"]
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        found.append(mean.item() / world)
    if shard:
        weights = gathered(objective)  # all take part
        if rank == 0:
            plain = with_dropout(0.0)
            plain.load_state_dict(weights)
            whole_batch = Objective(plain, level_starts(SIZES), SIZES, Terms()).eval()(**whole)
            found.append(whole_batch["loss"].item())
    else:
        found.append(objective.eval()(**whole)["loss"].item())
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = losses(True, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps({"losses": result, "processes": os.environ["WORLD_SIZE"]}))
    dist.destroy_process_group()
