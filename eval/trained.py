"""Generators that are trained to be compared: each in a run of its own, which shares what it does not change."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from eval.metrics import Bootstrap, per_query
from onesearch.corpus import VALID, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import read_yaml, write_text
from onesearch.retriever import BEAMS, Retriever
from onesearch.run import Run, stamps
from onesearch.settings import Settings

log = logging.getLogger(__name__)

COMPARED: Final = ("mrr@10", "recall@10")
NEAREST: Final = ("mrr@10", "recall@200")
"""Of the items nearest to the interest vector, where models have one."""
INTEREST: Final = "interest "
"""Their names begin with this."""


@dataclass(frozen=True)
class Answers:
    """Validation searches answered with generators of several seeds.

    Attributes:
        values: per metric (Q,) the mean over the seeds of each search. of_seeds: per metric the mean of each seed.
        user: (Q,) who searched. seconds: a training took on average.
    """

    values: dict[str, NDArray[np.float64]]
    of_seeds: dict[str, list[float]]
    user: NDArray[np.int32]
    seconds: float

    def summary(self, first: Answers, seed: int) -> dict[str, Any]:
        """Means with intervals that draw whole users, and paired differences to other answers."""
        draws = Bootstrap(self.user, seed=seed)
        differences = {} if first is self else first.values
        return {
            "searches": len(self.user),
            "train_seconds": self.seconds,
            "of_seeds": self.of_seeds,
            "differences": {
                metric: draws.difference(self.values[metric], found).as_dict()
                for metric, found in differences.items()
                if metric in self.values
            },
            **{metric: draws.mean(found).as_dict() for metric, found in self.values.items()},
        }


def sharing(run: Run, folder: Path, shared: Sequence[str], settings: Settings) -> Run:
    """A run in `folder` with settings of its own and links to what it shares with `run`."""
    own = Run.create(folder, settings)
    for part in shared:
        link, target = own.folder / part, (run.folder / part).resolve()
        if target.exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target, target_is_directory=True)
    return own


def prepare_training(run: Run, options: Mapping[str, Any], config: str | None = None) -> Callable[[], None]:
    """The training of the run's model with options of `training/sft.py` over those of a YAML; all of them are written
    to `training.yaml` of the run, and checked.

    Raises:
        UserError: an option that does not exist, or options that do not go together.
    """
    from training.sft import training_of  # imports the trainer, which takes seconds

    file = run.folder / "training.yaml"
    base = {} if config is None else read_yaml(Path(config))
    told = {**base, **options, "run": str(run.folder), "stage": "sft"}
    write_text(file, yaml.safe_dump(told, sort_keys=False))
    train, options, args = training_of(["--config", str(file)])
    return partial(train, options, args, _tell)


def _tell(done: int, total: int) -> None:
    """Ten lines in the log a training; a `Trainer` by itself prints to where the results go."""
    if done * 10 // total > (done - 1) * 10 // total:
        log.info("step %d of %d", done, total)


def train_here(run: Run, options: Mapping[str, Any], config: str | None = None) -> None:
    """Train the run's model with options of `training/sft.py` over those of a YAML, unless that is done already."""
    with run.lock():
        run.step(
            "train",
            prepare_training(run, options, config),
            settings=("split", "seed", "encoder"),
            reads=("corpus", "embeddings", "sid"),
            writes=("models/sft",),
            inputs={"options": dict(options), "sft": {} if config is None else stamps(Path(config))},
        )


def answers(runs: Sequence[Run], beams: int = BEAMS) -> Answers:
    """The validation searches as the models of these runs answer them; the test searches stay unseen.

    Raises:
        UserError: the log has no validation searches.
    """
    found: list[dict[str, NDArray[np.float64]]] = []
    for run in runs:
        retriever, settings = Retriever.load(run.folder), run.settings
        split = make_split(retriever.corpus, settings.split)
        requests = sample_requests(retriever.corpus, split, VALID, settings.valid_requests, settings.seed)
        if not len(requests):
            raise UserError("no validation searches", place=run.folder / "corpus", remedy="the log needs more events")
        values = per_query(retriever.rank(requests, 10, beams)[0], requests.target, COMPARED)
        if retriever.reader.interest is not None:
            near = per_query(retriever.rank(requests, 200, mode="interest")[0], requests.target, NEAREST)
            values |= {f"{INTEREST}{metric}": value for metric, value in near.items()}
        found.append(values)
    return Answers(
        values={metric: np.mean([one[metric] for one in found], axis=0) for metric in found[0]},
        of_seeds={metric: [float(one[metric].mean()) for one in found] for metric in found[0]},
        user=requests.user,
        seconds=float(np.mean([run.manifest["steps"]["train"]["seconds"] for run in runs])),
    )


def file_name(name: str) -> str:
    """The name of a row as that of a folder or file.

    >>> file_name("RQ-KMeans, 5 levels")
    'rq-kmeans-5-levels'
    """
    kept = "".join(letter if letter.isalnum() else " " for letter in name.lower().replace("+", " plus "))
    return "-".join(kept.split())
