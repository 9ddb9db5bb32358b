"""What alignment brings: a model before it and after each way of doing it, with equal updates from one start.

    python -m eval.alignment --run runs/demo --config configs/ablations/alignment.yaml

The YAML names what all rows share (`options`), the seeds, and the rows: each says its `script` (grpo or dpo) and the
options that make it differ. Every row is trained with every seed from the run's stage `start` (by default sft) and
keeps weights as the script does; then it answers the run's test searches, once. Means are over seeds, intervals
draw whole users, and differences to the start are paired. A row that is done is not done again, so that the command
goes on where it was interrupted.

Beside what is found of what was bought, the table says of each row:

- graded NDCG@10: how relevant the list is where an item of the right category counts too (`eval/graded.py`);
- reward and no signal: the mean reward of its last rollouts, and which share of groups had one reward for all;
- agreement: on validation searches, how the reward of a sample of the start goes with the NDCG@10 of what follows from
  it, the list below its first codes; the correlation within searches, as advantages compare. Rewards of single items
  are compared on the best item of each list. A list reward with the relevance "was bought" *is* a multiple of that
  NDCG, so its agreement is 1 by construction;
- distance: the divergence from the start, nats a search, by samples of the aligned model on validation searches.

Writes `alignment.json` and `alignment.md` into `eval/alignment/CONFIG` of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from eval.graded import Truth, graded_ndcg
from eval.metrics import Bootstrap, per_query
from eval.trained import file_name
from onesearch.corpus import TEST, TRAIN, VALID, Requests, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import read_json, read_yaml, write_json, write_text
from onesearch.noise import hashed
from onesearch.retriever import Retriever
from onesearch.run import Run, stamps
from onesearch.search import codes_of, sample
from onesearch.search.lists import lists_below
from onesearch.tables import spell_change, spell_number
from training import dpo, grpo
from training.rl.advantages import list_rewards
from training.rl.options import IMITATION
from training.rl.policies import policy_of
from training.rl.rewards import Known, Rewards

log = logging.getLogger(__name__)

FOUND: Final = ("mrr@10", "ndcg@10", "recall@10", "recall@50")
"""Of what was bought."""
GRADED: Final = "graded ndcg@10"
METRICS: Final = ("mrr@10", "ndcg@10", GRADED, "recall@10", "recall@50")
KEYS: Final = ("start", "seeds", "test_searches", "options", "rows", "only_for")
SCRIPTS: Final[dict[str, Any]] = {"grpo": grpo, "dpo": dpo}
SAMPLED: Final = 500
"""Validation searches that distance and agreement are measured on."""
DRAWS: Final = 8
LENGTH: Final = 10


@dataclass(frozen=True)
class Row:
    """One way of alignment: its script and options."""

    name: str
    script: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """What a YAML wants compared; `searches`: test searches, None for as many as the run has."""

    start: str
    seeds: list[int]
    searches: int | None
    rows: list[Row]


def read_rows(path: Path) -> Compared:
    """The YAML.

    Raises:
        UserError: an unknown key or script, or no rows.
    """
    given = read_yaml(path)
    for key in given:
        if key not in KEYS:
            raise UserError("unknown key", place=path, value=key, remedy=f"known: {', '.join(KEYS)}")
    shared, only = given.get("options") or {}, given.get("only_for") or {}
    rows = []
    for name, options in (given.get("rows") or {}).items():
        if not isinstance(options, Mapping) or options.get("script") not in SCRIPTS:
            remedy = f"name one of {', '.join(SCRIPTS)}"
            raise UserError("a row needs a script", place=f"{path}: {name}", value=options, remedy=remedy)
        script = str(options["script"])
        own = {key: value for key, value in options.items() if key != "script"}
        rows.append(Row(str(name), script, {**shared, **(only.get(script) or {}), **own}))
    if not rows:
        raise UserError("no rows", place=path, remedy="name one or more")
    seeds = [int(seed) for seed in given.get("seeds") or [7]]
    return Compared(str(given.get("start", "sft")), seeds, given.get("test_searches"), rows)


def compare(run: Run, path: Path, folder: Path) -> dict[str, Any]:
    """Align, measure, and write the results so far after every row."""
    given = read_rows(path)
    start, seeds, rows = given.start, given.seeds, given.rows
    searches = given.searches or run.settings.test_requests
    for row in rows:  # a mistake in the last row must not wait for the first
        _parsed(run, row, start, "check", seeds[0])
    first = Measured.of(run, start, searches)
    results: dict[str, Any] = {"start": start, "seeds": seeds, "test_searches": len(first.user), "rows": {}}
    draws = Bootstrap(first.user, seed=run.settings.seed)
    results["rows"][start] = {"metrics": {name: draws.mean(one).as_dict() for name, one in first.values.items()}}
    for number, row in enumerate(rows, 1):
        log.info("row %d of %d: %s", number, len(rows), row.name)
        found = [_done(run, row, start, seed, searches, folder) for seed in seeds]
        values = {name: np.mean([one["values"][name] for one in found], axis=0) for name in METRICS}
        told = {
            name: float(np.mean([one["told"][name] for one in found]))
            for name in found[0]["told"]
            if all(one["told"].get(name) is not None for one in found)
        }
        results["rows"][row.name] = {
            "script": row.script,
            "options": row.options,
            "of_seeds": {name: [float(np.mean(one["values"][name])) for one in found] for name in METRICS},
            "kept_steps": [one["kept_step"] for one in found],
            "metrics": {name: draws.mean(one).as_dict() for name, one in values.items()},
            "differences": {name: draws.difference(one, first.values[name]).as_dict() for name, one in values.items()},
            **told,
        }
        write_json(folder / "alignment.json", results)
        write_text(folder / "alignment.md", markdown(results))
    return results


@dataclass(frozen=True)
class Measured:
    """Test searches answered by a stage: per metric (Q,) values; (Q,) who searched."""

    values: dict[str, NDArray[np.float64]]
    user: NDArray[np.int32]

    @classmethod
    def of(cls, run: Run, stage: str, searches: int) -> Measured:
        retriever = Retriever.load(run.folder, stage)
        requests = requests_of(run, retriever, TEST, searches)
        items, truth = retriever.rank(requests, 50)[0], Truth(retriever.corpus)
        shown = truth(requests.target, items[:, :LENGTH])
        graded = graded_ndcg(shown, truth.best(requests.target, LENGTH))
        return cls(per_query(items, requests.target, FOUND) | {GRADED: graded}, requests.user)


def requests_of(run: Run, retriever: Retriever, part: int, size: int) -> Requests:
    """Held-out searches, those of `eval.recall`."""
    split = make_split(retriever.corpus, run.settings.split)
    return sample_requests(retriever.corpus, split, part, size, run.settings.seed)


def agreement(run: Run, start: str, rewards: Sequence[str], listed: bool, depth: int) -> float | None:
    """Correlation within searches of what samples of the start earn with the NDCG@10 of the lists below them."""
    retriever = Retriever.load(run.folder, start)
    requests = requests_of(run, retriever, VALID, SAMPLED)
    scorer: Any = retriever.reader.read(requests)
    keys = hashed(torch.from_numpy(requests.event), run.settings.seed)
    found = lists_below(scorer, depth, DRAWS, LENGTH, random=keys)
    items = found.items.numpy()
    length = items.shape[2]
    hit = torch.from_numpy(items == requests.target[:, None, None])
    ndcg = (hit / torch.arange(2, length + 2).log2()).sum(-1)
    earned = Rewards(rewards, None, Known(run, retriever.corpus, retriever.table))
    if listed:
        total = torch.from_numpy(earned(requests, items.reshape(len(items), -1)).total.reshape(items.shape))
        reward = list_rewards(total)
    else:
        reward = torch.from_numpy(earned(requests, items[:, :, 0]).total)
    apart = [_apart(one, found.there) for one in (reward, ndcg)]
    if min(float(one.std()) for one in apart) == 0:
        return None
    return float(torch.corrcoef(torch.stack(apart))[0, 1])


def _apart(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """(n,) the values (B, G) that are there, minus the mean of their search."""
    mean = (values * there).sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
    return (values - mean)[there]


@torch.no_grad()
def distance(run: Run, stage: str, start: str) -> float:
    """Nats a search between an aligned model and its start, estimated with samples of the aligned one."""
    one, other = Retriever.load(run.folder, stage), Retriever.load(run.folder, start)
    requests = requests_of(run, one, VALID, SAMPLED)
    split = make_split(one.corpus, run.settings.split)
    known = np.flatnonzero(split == TRAIN)
    aligned, began = (policy_of(found.reader, found.table, 1.0, known).eval() for found in (one, other))
    total = []
    for place in range(0, len(requests), 100):
        part = requests.part(slice(place, place + 100))
        inputs = aligned.encode(part)
        scorer: Any = aligned.scorer(inputs)
        found = sample(scorer, DRAWS, random=hashed(torch.from_numpy(part.event), run.settings.seed))
        codes = codes_of(scorer.index, found.nodes).clone()
        said = (policy(inputs=policy.encode(part), codes=codes)["log_prob"].sum(-1) for policy in (aligned, began))
        mine, theirs = said
        total.append((mine - theirs).mean(1))
    return float(torch.cat(total).mean())


def markdown(results: Mapping[str, Any]) -> str:
    """The table."""
    rows, seeds = results["rows"], len(results["seeds"])
    heading = ["", "MRR@10", "difference", "NDCG@10", "difference", "graded NDCG@10", "difference", "Recall@10"]
    heading += ["difference", "Recall@50", "reward", "no signal", "agreement", "distance", "kept steps", "seconds"]
    lines = [
        f"{results['test_searches']:,} test searches, {seeds} seed{'s' * (seeds > 1)}; "
        f"differences to `{results['start']}`.",
        "",
        f"| {' | '.join(heading)} |",
        "|---" * len(heading) + "|",
    ]
    for name, row in rows.items():
        cells = [name]
        for metric in METRICS:
            cells.append(spell_number(row["metrics"][metric]["mean"]))
            if metric != "recall@50":
                cells.append(spell_change(row["differences"][metric]) if "differences" in row else "")
        for told, form in (("reward", ".3f"), ("no_signal", ".2f"), ("agreement", ".2f"), ("distance", ".3f")):
            cells.append(format(row[told], form) if told in row else "")
        cells.append(", ".join(map(str, row.get("kept_steps", []))))
        cells.append(f"{row['seconds']:.0f}" if "seconds" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _done(run: Run, row: Row, start: str, seed: int, searches: int, folder: Path) -> dict[str, Any]:
    """Align one row with one seed and measure it, unless that is done already."""
    stage = f"aligned-{file_name(row.name)}-{seed}"
    kept = folder / "rows" / f"{stage}.json"
    basis = {"script": row.script, "options": row.options, "searches": searches}
    basis["start"] = stamps(run.folder / "models" / start)
    if kept.exists() and (found := read_json(kept))["basis"] == json.loads(json.dumps(basis)):
        return dict(found)
    began = time.perf_counter()
    with run.lock():
        SCRIPTS[row.script].train(*_parsed(run, row, start, stage, seed), lambda done, total: None)
    seconds = time.perf_counter() - began
    history = read_json(run.folder / "models" / stage / "log_history.json")
    options = row.options
    listed = options.get("rollout") == "list"
    told = {
        "reward": _last(history, "reward"),
        "no_signal": _mean(history, "frac_reward_zero_std"),
        "agreement": None,
        "distance": distance(run, stage, start),
        "seconds": seconds,
    }
    if row.script == "grpo" and options.get("rollout") != IMITATION:
        told["agreement"] = agreement(
            run, start, options.get("rewards", ["bought"]), listed, int(options.get("list_depth", 1))
        )
    measured = Measured.of(run, stage, searches)
    found = {
        "basis": basis,
        "told": told,
        "kept_step": next((one["kept_step"] for one in reversed(history) if "kept_step" in one), None),
        "values": {name: one.tolist() for name, one in measured.values.items()},
    }
    write_json(kept, found)
    return found


def _parsed(run: Run, row: Row, start: str, stage: str, seed: int) -> Any:
    given = {**row.options, "run": run.folder, "start": start, "stage": stage, "seed": seed}
    arguments = []
    for name, value in given.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return SCRIPTS[row.script].parse(arguments)


def _last(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return next((float(one[name]) for one in reversed(history) if name in one), None)


def _mean(history: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [float(one[name]) for one in history if name in one]
    return float(np.mean(values)) if values else None


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.alignment --run runs/demo --config configs/ablations/alignment.yaml`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a trained model")
    parser.add_argument("--config", type=Path, required=True, help="what is compared")
    parser.add_argument("--output", type=Path, help="folder of the results (eval/alignment/CONFIG of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    try:
        run = Run.open(options.run)
        output = options.output or run.folder / "eval/alignment" / options.config.stem
        results = compare(run, options.config, output)
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(json.dumps(results) + "\n" if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
