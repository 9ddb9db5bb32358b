"""The self-evolving loop of list-reward GRPO: rewards on what the model fails at, then imitation of what that solved.

    python training/evolve.py --run runs/demo --rounds 2 --config configs/demo/grpo.yaml

Each round (https://arxiv.org/abs/2510.16925; the paper's is over reasoning, and how it mixes is not known):

1. the searches of a sample of training events that the model fails at: what was bought is not among its first `k`;
2. `training/grpo.py` on those, by the options of the YAML: a policy which solves some of them;
3. the cross-entropy of the searches that it solves and of as many that never failed, from the model of before.

A round that solves too little for one batch ends the loop. The models of the rounds are stages `evolve-1`, `evolve-2`,
... of the run, and each ends as `training/grpo.py` does: with its best weights by validation.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from onesearch.corpus import Requests, make_split
from onesearch.errors import UserError
from onesearch.files import atomic_path
from onesearch.retriever import Retriever
from onesearch.run import Run
from training import grpo
from training.launch import fail, held
from training.rl.options import IMITATION
from training.sft import periods

log = logging.getLogger(__name__)


def evolve(arguments: Sequence[str], rounds: int, sample: int, k: int) -> list[dict[str, int]]:
    """The rounds; what each found, solved and kept.

    Args:
        arguments: of `training/grpo.py`. sample: training events that are looked at in a round. k: of the first step.
    """
    options, args = grpo.parse(list(arguments))
    run = Run.open(options.run)
    told: list[dict[str, int]] = []
    stage = options.start
    for number in range(1, rounds + 1):
        retriever = Retriever.load(run.folder, stage)
        split = make_split(retriever.corpus, run.settings.split)
        events, _ = periods(retriever.corpus, split, options.recent)
        events = np.sort(np.random.default_rng((args.seed, number)).permutation(events)[:sample])
        right = answered(retriever, events, k)
        failed, fine = events[~right], events[right]
        policy, model = f"evolve-{number}-policy", f"evolve-{number}"
        folder = run.folder / "models"
        names = [f"--{one}" for one in ("start", "stage", "events")]
        _write(failed, folder / f"{policy}.parquet")
        given = [*arguments, *_pairs(names, [stage, policy, str(folder / f"{policy}.parquet")])]
        grpo.train(*grpo.parse(given))
        solved = failed[answered(Retriever.load(run.folder, policy), failed, k)]
        mixed = np.sort(np.concatenate([solved, np.random.default_rng(number).permutation(fine)[: len(solved)]]))
        told.append({"looked at": len(events), "failed": len(failed), "solved": len(solved), "learnt": len(mixed)})
        log.info("round %d: %s", number, ", ".join(f"{name} {value:,}" for name, value in told[-1].items()))
        if len(mixed) < args.train_batch_size:
            log.warning("round %d solved too little for one batch: the loop ends with stage %s", number, stage)
            break
        _write(mixed, folder / f"{model}.parquet")
        imitated = [*arguments, *_pairs(names, [stage, model, str(folder / f"{model}.parquet")])]
        grpo.train(*grpo.parse([*imitated, "--rollout", IMITATION, "--sft", "1"]))
        stage = model
    return told


def answered(retriever: Retriever, events: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """(n,) whether what was bought is among the first k answers to the search behind each event."""
    requests = Requests.of(retriever.corpus, events)
    found: NDArray[np.bool_] = (retriever.rank(requests, k, beams=k)[0] == requests.target[:, None]).any(1)
    return found


def _write(events: NDArray[np.int64], path: Path) -> None:
    with atomic_path(path) as temporary:
        pl.DataFrame({"event": events}).write_parquet(temporary)


def _pairs(names: Sequence[str], values: Sequence[str]) -> list[str]:
    return [part for pair in zip(names, values, strict=True) for part in pair]


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point; all options but its own are those of `training/grpo.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="how often")
    parser.add_argument("--sample", type=int, default=20_000, help="training events that are looked at in a round")
    parser.add_argument("--k", type=int, default=10, help="what is not among the first k is a failure")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    own, rest = parser.parse_known_args(arguments)
    try:
        options, _ = grpo.parse(rest)
        with held(Run.open(options.run)):
            evolve(rest, own.rounds, own.sample, own.k)
    except UserError as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
