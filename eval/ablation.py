"""What each part of a training brings: models that differ in a few options, on validation searches.

    python -m eval.ablation --run runs/demo --config configs/ablations/views.yaml
    python -m eval.ablation --run runs/demo --config configs/ablations/sft.yaml

The YAML names what all rows share (`options`, over those of `base`, a YAML of `training/sft.py`), the seeds, and the
rows, each with the options that make it differ; with `model: language` they are those of `training/language.py`. Every
row answers the same searches, `searches` of them (as many as the run says) with `beams` beams.
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
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from eval.charts import Interval, alone, interval_plot
from eval.trained import COMPARED, INTEREST, NEAREST, Answers, answers, file_name, prepare_training, sharing, train_here
from onesearch.errors import UserError
from onesearch.files import read_yaml, write_json, write_text
from onesearch.retriever import BEAMS
from onesearch.run import Run
from onesearch.tables import spell_change, spell_number

log = logging.getLogger(__name__)

KEYS: Final = ("base", "seeds", "searches", "beams", "options", "rows")
SHARED: Final = ("corpus", "embeddings", "models/align", "sid")


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Attributes:
        base: YAML of `training/sft.py`, or None. seeds: of the trainings.
        rows: options of each row by its name; the first is what the others are compared with.
        searches: at most so many validation searches; None for as many as the run's settings say.
        beams: of these searches.
    """

    base: str | None
    seeds: list[int]
    rows: dict[str, dict[str, Any]]
    searches: int | None = None
    beams: int = BEAMS

    @classmethod
    def read(cls, path: Path) -> Ablation:
        """The YAML, with every option checked before anything is trained.

        Raises:
            UserError: an unknown key or option, a row that is no mapping, two rows of one name, or fewer than two.
        """
        given = read_yaml(path)
        base = read_yaml(Path(given["base"])) if given.get("base") else {}
        for key in given:
            if key not in KEYS:
                raise UserError("unknown key", place=path, value=key, remedy=f"known: {', '.join(KEYS)}")
        shared, rows = given.get("options") or {}, given.get("rows") or {}
        if len(rows) < 2:
            raise UserError("nothing to compare", place=f"{path}: rows", remedy="name two rows or more")
        if len({file_name(str(name)) for name in rows}) < len(rows):
            raise UserError("two rows of one name", place=path, remedy="tell them apart by letters or digits")
        counts = {name: given[name] for name in ("searches", "beams") if given.get(name) is not None}
        for name, count in counts.items():
            if type(count) is not int or count < 1:
                raise UserError("a number of 1 or more", place=f"{path}: {name}", value=count)
        for name, options in {"options": shared, **rows}.items():
            if not isinstance(options, Mapping):
                raise UserError("a row is a mapping of options", place=f"{path}: {name}", value=options, remedy="{}")
            model = str({**base, **shared, **options}.get("model", "generator"))
            for option in options:
                if option not in _options(model):
                    remedy = f"see `python training/sft.py --model {model} --help`"
                    raise UserError("unknown option", place=f"{path}: {name}", value=option, remedy=remedy)
        seeds = list(given.get("seeds") or [7])
        merged = {str(name): {**shared, **options} for name, options in rows.items()}
        return cls(given.get("base"), seeds, merged, **counts)


def compare(run: Run, ablation: Ablation, folder: Path) -> dict[str, Any]:
    """Train and measure every row; the results so far are written after each.

    Raises:
        UserError: a row whose options do not go together, before anything is trained; or what its training raises.
    """
    results: dict[str, Any] = {"seeds": ablation.seeds, "rows": {}}
    settings = replace(run.settings, sft=ablation.base)
    if ablation.searches is not None:
        settings = replace(settings, valid_requests=ablation.searches)
    runs: dict[str, dict[int, Run]] = {}
    for name, options in ablation.rows.items():
        places = {seed: folder / "runs" / f"{file_name(name)}-seed-{seed}" for seed in ablation.seeds}
        runs[name] = {seed: sharing(run, place, SHARED, settings) for seed, place in places.items()}
        for seed, own in runs[name].items():
            try:
                prepare_training(own, {**options, "seed": seed}, ablation.base)
            except UserError as error:
                raise UserError(
                    error.problem, place=f"{name}: {error.place}", value=error.value, remedy=error.remedy
                ) from None
    first: Answers | None = None
    for number, (name, options) in enumerate(ablation.rows.items(), 1):
        log.info("row %d of %d: %s", number, len(ablation.rows), name)
        for seed, own in runs[name].items():
            train_here(own, {**options, "seed": seed}, ablation.base)
        found = answers(list(runs[name].values()), ablation.beams)
        first = found if first is None else first
        results["rows"][name] = {"options": options, **found.summary(first, run.settings.seed)}
        write(folder, results)
    return results


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `ablation.json`, `ablation.md` and `ablation.svg`."""
    write_json(folder / "ablation.json", results)
    write_text(folder / "ablation.md", markdown(results))
    means = [Interval(name, **row["mrr@10"]) for name, row in results["rows"].items()]
    width = 6 * max(len(one.name) for one in means) + 20
    plot = interval_plot("MRR@10 of validation searches", means, width=width + 260, labels=width)
    write_text(folder / "ablation.svg", alone(plot))


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
            cells += [mean, "" if change is None else spell_change(change)]
        lines.append(f"| {' | '.join(cells)} | {row['train_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


def _heading(metric: str) -> str:
    """
    >>> _heading("mrr@10"), _heading("interest recall@200")
    ('MRR@10', 'interest Recall@200')
    """
    return metric.replace("mrr", "MRR").replace("recall", "Recall")


def _options(model: str) -> set[str]:
    from training.language import LanguageArguments, StagedArguments  # imports the trainer, which takes seconds
    from training.sft import ModelArguments, SftArguments

    kinds = (LanguageArguments, StagedArguments) if model == "language" else (ModelArguments, SftArguments)
    return {field.name for kind in kinds for field in fields(kind)} - {"run", "stage", "seed"}


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
