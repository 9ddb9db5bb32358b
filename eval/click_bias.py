"""What it brings to weigh clicks by the inverse chance to look, where the truth is known: `eval/clicks.py`'s users.

    python -m eval.click_bias --run runs/demo          # about 15 minutes on one core
    python -m eval.click_bias --run runs/demo --updates 5 --seeds 7 --searches 400 --held_out 200

From one start (the run's stage sft) `training/grpo.py --rollout log --rewards interaction` learns from the same lists,
with equally many updates, without looking at any validation:

- position, plain and debiased: clicks of the position-based model; with `--propensity position` weighed by its chances;
- cascade, plain and debiased: clicks of the cascade model, whose chances the same weights do not match;
- everything looked at: clicks of users who look at all ranks, which nobody can observe; the best that is to be had.

Each seed has other clicks and another order of the searches. Test searches are answered once by each model with ten
items, of which the truth tells how attractive they are: their mean (relevance@10), and their discounted sum as a share
of that of the best list of the catalogue (NDCG@10). Means are over the seeds, intervals draw whole users, and
differences are paired. What is done is not done again.

Writes `click_bias.json` and `click_bias.md` into `eval/click_bias` of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from eval.clicks import LENGTH, clicks_of, shown_lists, training_searches, write_lists
from eval.graded import Truth, graded_ndcg, relevance
from eval.metrics import Bootstrap, per_query
from eval.trained import sharing
from onesearch.corpus import TEST, Corpus, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import checksum, write_json, write_text
from onesearch.retriever import Retriever
from onesearch.run import Run
from onesearch.tables import spell_change, spell_number

log = logging.getLogger(__name__)

START: Final = "sft"
SHARED: Final = ("corpus", "embeddings", "sid", "models/sft")
METRICS: Final = ("relevance@10", "ndcg@10", "bought mrr@10")
RECENT: Final = 0.6


@dataclass(frozen=True)
class Way:
    """Clicks of a model with its eta, and whether they are weighed by the chance to look."""

    model: str
    eta: float
    debiased: bool = False


def ways(eta: float) -> dict[str, Way]:
    """The rows of the table by their names."""
    return {
        "position, plain": Way("position", eta),
        "position, debiased": Way("position", eta, debiased=True),
        "cascade, plain": Way("cascade", eta),
        "cascade, debiased": Way("cascade", eta, debiased=True),
        "everything looked at": Way("position", 0.0),
    }


PAIRS: Final = (("position, debiased", "position, plain"), ("cascade, debiased", "cascade, plain"))


@dataclass(frozen=True)
class Plan:
    """Sizes of the experiment."""

    seeds: Sequence[int] = (7, 8, 9)
    updates: int = 40
    batch: int = 64
    searches: int = 4000
    held_out: int = 2000
    eta: float = 1.0
    clip: float = 10.0
    learning_rate: float = 1e-4


def compare(run: Run, plan: Plan, folder: Path) -> dict[str, Any]:
    """Simulate, align, answer and measure; results are written at the end of every row."""
    corpus = Corpus.load(run.folder / "corpus")
    truth, own = Truth(corpus), sharing(run, folder / "run", SHARED, run.settings)
    learnt = training_searches(run, corpus, plan.searches, RECENT, run.settings.seed)
    lists = shown_lists(corpus, learnt)
    attraction = truth(learnt.target, lists)
    held_out = sample_requests(corpus, make_split(corpus, run.settings.split), TEST, plan.held_out, run.settings.seed)
    best, draws = truth.best(held_out.target, LENGTH), Bootstrap(held_out.user, seed=run.settings.seed)

    def measured(stage: str) -> dict[str, NDArray[np.float64]]:
        items = Retriever.load(own.folder, stage).rank(held_out, LENGTH)[0]
        found = truth(held_out.target, items)
        bought = per_query(items, held_out.target, ["mrr@10"])["mrr@10"]
        return dict(zip(METRICS, (relevance(found), graded_ndcg(found, best), bought), strict=True))

    values: dict[str, dict[str, NDArray[np.float64]]] = {START: measured(START)}
    shown = truth(held_out.target, shown_lists(corpus, held_out))
    results: dict[str, Any] = {
        **{name: getattr(plan, name) for name in Plan.__dataclass_fields__},
        "test_searches": len(held_out),
        "lists_shown": {
            "relevance@10": float(relevance(shown).mean()),
            "ndcg@10": float(graded_ndcg(shown, best).mean()),
        },
        "attractive_by_rank": attraction.mean(0).tolist(),
        "clicks_by_rank": {},
        "rows": {START: _row(values[START], [values[START]], draws)},
        "pairs": {},
    }
    for name, way in ways(plan.eta).items():
        of_seeds = []
        for seed in plan.seeds:
            path = folder / "lists" / f"{way.model}-{way.eta:g}-{seed}.parquet"
            clicks = clicks_of(way.model, attraction, way.eta, seed)
            write_lists(path, corpus, learnt, lists, clicks)
            results["clicks_by_rank"][f"{way.model}, eta {way.eta:g}"] = clicks.mean(0).tolist()
            stage = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            log.info("%s, seed %d", name, seed)
            _align(own, plan, way, path, stage, seed)
            of_seeds.append(measured(stage))
        values[name] = {metric: np.mean([one[metric] for one in of_seeds], axis=0) for metric in METRICS}
        results["rows"][name] = _row(values[name], of_seeds, draws, values[START])
        for one, other in PAIRS:
            if one == name:
                results["pairs"][f"{one} - {other}"] = {
                    metric: draws.difference(values[one][metric], values[other][metric]).as_dict() for metric in METRICS
                }
        write_json(folder / "click_bias.json", results)
        write_text(folder / "click_bias.md", markdown(results))
    return results


def _align(own: Run, plan: Plan, way: Way, lists: Path, stage: str, seed: int) -> None:
    """Train a stage on lists, unless that is done already."""
    from training.grpo import parse, train  # imports the trainer, which takes seconds

    options: dict[str, Any] = {
        "rollout": "log",
        "rewards": "interaction",
        "recent": RECENT,
        "num_generations": LENGTH,
        "scale_rewards": "batch",
        "learning_rate": plan.learning_rate,
        "per_device_train_batch_size": plan.batch,
        "max_steps": plan.updates,
        "eval_strategy": "no",
        "save_strategy": "no",
        "seed": seed,
    }
    if way.debiased:
        options |= {"propensity": "position", "propensity_eta": plan.eta, "propensity_clip": plan.clip}
    given = {"run": own.folder, "start": START, "stage": stage, "shown": lists, **options}
    arguments = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    with own.lock():
        own.step(
            stage,
            lambda: train(*parse(arguments), progress=_told),
            settings=("split", "seed"),
            reads=SHARED,
            writes=(f"models/{stage}",),
            inputs={"options": options, "lists": checksum(lists)},
        )


def _told(done: int, total: int) -> None:
    """Standard output is for the results alone."""
    if done % 10 == 0 or done == total:
        log.info("update %d of %d", done, total)


def _row(
    values: Mapping[str, NDArray[np.float64]],
    of_seeds: Sequence[Mapping[str, NDArray[np.float64]]],
    draws: Bootstrap,
    start: Mapping[str, NDArray[np.float64]] | None = None,
) -> dict[str, Any]:
    """Means with intervals, those of each seed, and paired differences to the start."""
    row: dict[str, Any] = {
        "metrics": {metric: draws.mean(one).as_dict() for metric, one in values.items()},
        "of_seeds": {metric: [float(one[metric].mean()) for one in of_seeds] for metric in values},
    }
    if start is not None:
        row["differences"] = {metric: draws.difference(one, start[metric]).as_dict() for metric, one in values.items()}
    return row


def markdown(results: Mapping[str, Any]) -> str:
    """The table."""
    seeds = len(results["seeds"])
    lines = [
        f"{results['test_searches']:,} test searches, {seeds} seed{'s' * (seeds > 1)}, {results['updates']} updates of "
        f"{results['batch']} lists; differences to the start, paired.",
        "",
        f"| | {' | difference | '.join(METRICS)} | difference |",
        "|---" * (2 * len(METRICS) + 1) + "|",
    ]
    for name, row in results["rows"].items():
        cells = [name]
        for metric in METRICS:
            change = row.get("differences", {}).get(metric)
            cells += [spell_number(row["metrics"][metric]["mean"]), "" if change is None else spell_change(change)]
        lines.append(f"| {' | '.join(cells)} |")
    for name, row in results["pairs"].items():
        cells = [name, *(part for metric in METRICS for part in ("", spell_change(row[metric])))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.click_bias --run runs/demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan = Plan()
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a model in models/sft")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(plan.seeds))
    parser.add_argument("--updates", type=int, default=plan.updates)
    parser.add_argument("--batch", type=int, default=plan.batch, help="lists of an update")
    parser.add_argument("--searches", type=int, default=plan.searches, help="training searches that are simulated")
    parser.add_argument("--held_out", type=int, default=plan.held_out, help="test searches")
    parser.add_argument("--eta", type=float, default=plan.eta, help="rank r is looked at with (1 + r)^-eta")
    parser.add_argument("--clip", type=float, default=plan.clip, help="no weight is more than this")
    parser.add_argument("--learning_rate", type=float, default=plan.learning_rate)
    parser.add_argument("--output", type=Path, help="folder of the results (eval/click_bias of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run = Run.open(options.run)
        chosen = Plan(**{name: getattr(options, name) for name in Plan.__dataclass_fields__})
        results = compare(run, chosen, options.output or run.folder / "eval/click_bias")
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(json.dumps(results) + "\n" if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
