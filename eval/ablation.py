"""What each part of a training brings: generators that differ in a few options, on validation searches.

    python -m eval.ablation --run runs/demo --config configs/ablations/sft.yaml

The YAML names what all rows share (`options`, over those of `base`, a YAML of `training/sft.py`), the seeds, and the
rows, each with the options that make it differ. Every row has the same budget and answers the same searches.
Differences are paired, to the first row, with intervals that draw whole users. A training that is done is not done
again, so that the command goes on where it was interrupted. The test searches stay unseen.

Writes `ablation.json`, `ablation.md` and `ablation.svg`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from eval.charts import Interval, interval_plot
from eval.trained import COMPARED, INTEREST, NEAREST, Answers, answers, file_name, sharing, train_here
from onesearch.errors import UserError
from onesearch.files import read_yaml, write_json, write_text
from onesearch.run import Run
from onesearch.tables import spell_number

log = logging.getLogger(__name__)

KEYS: Final = ("base", "seeds", "options", "rows")
SHARED: Final = ("corpus", "embeddings", "models/align", "sid")


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Attributes:
        base: YAML of `training/sft.py`, or None. seeds: of the trainings.
        rows: options of each row by its name; the first is what the others are compared with.
    """

    base: str | None
    seeds: list[int]
    rows: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Ablation:
        """The YAML, with every option checked before anything is trained.

        Raises:
            UserError: an unknown key or option, a row that is no mapping, two rows of one name, or fewer than two.
        """
        given = read_yaml(path)
        for key in given:
            if key not in KEYS:
                raise UserError("unknown key", place=path, value=key, remedy=f"known: {', '.join(KEYS)}")
        shared, rows = given.get("options") or {}, given.get("rows") or {}
        if len(rows) < 2:
            raise UserError("nothing to compare", place=f"{path}: rows", remedy="name two rows or more")
        if len({file_name(str(name)) for name in rows}) < len(rows):
            raise UserError("two rows of one name", place=path, remedy="tell them apart by letters or digits")
        known = _options()
        for name, options in {"options": shared, **rows}.items():
            if not isinstance(options, Mapping):
                raise UserError("a row is a mapping of options", place=f"{path}: {name}", value=options, remedy="{}")
            for option in options:
                if option not in known:
                    remedy = "see `python training/sft.py --help`"
                    raise UserError("unknown option", place=f"{path}: {name}", value=option, remedy=remedy)
        seeds = list(given.get("seeds") or [7])
        return cls(given.get("base"), seeds, {str(name): {**shared, **options} for name, options in rows.items()})


def compare(run: Run, ablation: Ablation, folder: Path) -> dict[str, Any]:
    """Train and measure every row; the results so far are written after each."""
    results: dict[str, Any] = {"seeds": ablation.seeds, "rows": {}}
    first: Answers | None = None
    for number, (name, options) in enumerate(ablation.rows.items(), 1):
        log.info("row %d of %d: %s", number, len(ablation.rows), name)
        runs = []
        for seed in ablation.seeds:
            settings = replace(run.settings, sft=ablation.base)
            own = sharing(run, folder / "runs" / f"{file_name(name)}-seed-{seed}", SHARED, settings)
            train_here(own, {**options, "seed": seed}, ablation.base)
            runs.append(own)
        found = answers(runs)
        first = found if first is None else first
        results["rows"][name] = {"options": options, **found.summary(first, run.settings.seed)}
        write(folder, results)
    return results


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `ablation.json`, `ablation.md` and `ablation.svg`."""
    write_json(folder / "ablation.json", results)
    write_text(folder / "ablation.md", markdown(results))
    means = [Interval(name, **row["mrr@10"]) for name, row in results["rows"].items()]
    width = 8 * max(len(one.name) for one in means)
    plot = interval_plot("MRR@10 of validation searches", means, width=width + 260, labels=width)
    write_text(folder / "ablation.svg", str(plot).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def markdown(results: Mapping[str, Any]) -> str:
    """The table: means, and differences to the first row."""
    rows = list(results["rows"].items())
    metrics = [*COMPARED, *(f"{INTEREST}{one}" for one in NEAREST if any(f"{INTEREST}{one}" in row for _, row in rows))]
    searches, seeds = rows[0][1]["searches"], len(results["seeds"])
    lines = [
        f"{searches:,} validation searches, {seeds} seed{'s' * (seeds > 1)}; differences to the first row.",
        "",
        f"| | {' | difference | '.join(map(_heading, metrics))} | difference | train, s |",
        "|---" * (2 * len(metrics) + 2) + "|",
    ]
    for name, row in rows:
        cells = [name]
        for metric in metrics:
            change = row["differences"].get(metric)
            mean = spell_number(row[metric]["mean"]) if metric in row else ""
            cells += [mean, "" if change is None else _change(change)]
        lines.append(f"| {' | '.join(cells)} | {row['train_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _heading(metric: str) -> str:
    """
    >>> _heading("mrr@10"), _heading("interest recall@200")
    ('MRR@10', 'interest Recall@200')
    """
    return metric.replace("mrr", "MRR").replace("recall", "Recall")


def _change(change: Mapping[str, float]) -> str:
    mean, low, high = (spell_number(change[name], signed=True) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _options() -> set[str]:
    from dataclasses import fields

    from training.sft import ModelArguments, SftArguments  # imports the trainer, which takes seconds

    return {field.name for kind in (ModelArguments, SftArguments) for field in fields(kind)} - {"run", "seed"}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.ablation --run runs/demo --config configs/ablations/sft.yaml`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with semantic IDs")
    parser.add_argument("--config", type=Path, required=True, help="what is compared")
    parser.add_argument("--output", type=Path, help="folder of the results (eval/ablation/CONFIG of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    try:
        run = Run.open(options.run)
        output = options.output or run.folder / "eval/ablation" / options.config.stem
        results = compare(run, Ablation.read(options.config), output)
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(json.dumps(results) + "\n" if options.json else markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
