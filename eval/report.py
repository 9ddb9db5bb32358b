"""The report: one page that needs no network, with what a run found and how it came about.

A part whose file is not there yet is left out, and the page says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from eval.charts import DotRow, Interval, Line, dot_plot, interval_plot, line_plot, usage_plot
from onesearch.files import read_json, write_text
from onesearch.settings import Settings
from onesearch.tables import METRICS, spell_metric, spell_number

OWN = "generator"
PLOTTED = ("mrr@10", "ndcg@10", "recall@10")
SLICED = "mrr@10"


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into a run folder from what the run holds."""
    folder = Path(run_folder)
    history = _optional(folder / "models/sft/log_history.json")
    page = render(
        run_folder.name,
        settings=Settings.read(folder / "config.yaml"),
        manifest=read_json(folder / "manifest.json"),
        corpus=_optional(folder / "corpus/corpus.json"),
        results=_optional(folder / "eval/recall.json"),
        sids=_optional(folder / "sid/usage.json"),
        searches=_optional(folder / "eval/searches.json"),
        history=history,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def render(
    name: str,
    *,
    settings: Settings,
    manifest: Mapping[str, Any],
    corpus: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    sids: Mapping[str, Any] | None = None,
    searches: Sequence[Mapping[str, Any]] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The page as text; what is None is left out."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=spell_number, metric=spell_metric)
    template = environment.from_string(files("eval").joinpath("report.html").read_text(encoding="utf-8"))
    return template.render(
        name=name,
        settings=settings,
        manifest=manifest,
        corpus=corpus,
        results=None if results is None else _results(results),
        slices=None if results is None else _slices(results),
        levels=None if sids is None else _levels(sids),
        sids=sids,
        searches=None if searches is None else _searches(searches),
        curves=None if history is None else training_curves(history),
    )


def headline(results: Mapping[str, Any]) -> str:
    """The finding in a sentence or two."""
    if OWN not in results["systems"]:
        return f"{results['queries']:,} held-out searches; the generator is not among the systems yet."
    own = results["systems"][OWN]
    share = f"{100 * own['recall@10']['mean']:.0f} %"
    first = f"In {share} of {results['queries']:,} held-out searches the item that was bought is among the first ten."
    rival, difference = results.get("strongest_baseline"), results.get("differences", {}).get(OWN)
    if not rival or not difference:
        return first
    one = difference["mrr@10"]
    verdict = "above" if one["low"] > 0 else "below" if one["high"] < 0 else "not told apart from"
    span = f"{spell_number(one['low'], signed=True)} to {spell_number(one['high'], signed=True)}"
    difference_text = f"{spell_number(one['mean'], signed=True)}, 95 % interval {span}"
    return f"{first} By MRR@10 the generator is {verdict} {rival}, the strongest baseline: {difference_text}."


def training_curves(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """(title, chart) per quantity of a Trainer's log: the losses in one, every other `eval_` metric in its own."""
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for key, value in entry.items():
            if isinstance(value, int | float) and (key == "loss" or key.startswith("eval_")):
                series.setdefault(key, []).append((float(entry["step"]), float(value)))
    timing = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    series = {key: points for key, points in series.items() if len(points) > 1 and key not in timing}
    losses = [
        Line(name, series.pop(key), kind)
        for key, name, kind in (("loss", "training", ""), ("eval_loss", "validation", "own"))
        if key in series
    ]
    curves = [("loss", line_plot("loss", losses))] if losses else []
    for key, points in series.items():
        title = key.removeprefix("eval_").replace("_", " ")
        curves.append((f"{title}, validation", line_plot(title, [Line("", points, "own")])))
    return curves


def _kind(system: str, results: Mapping[str, Any]) -> str:
    return "own" if system == OWN else "rival" if system == results.get("strongest_baseline") else ""


def _results(results: Mapping[str, Any]) -> dict[str, Any]:
    systems = results["systems"]
    metrics = [metric for metric in METRICS if all(metric in values for values in systems.values())]
    plots = [
        (
            spell_metric(metric),
            interval_plot(
                spell_metric(metric),
                [Interval(name, **values[metric], kind=_kind(name, results)) for name, values in systems.items()],
            ),
        )
        for metric in PLOTTED
        if metric in metrics
    ]
    return {
        "headline": headline(results),
        "queries": results["queries"],
        "exact_share": results.get("exact_share"),
        "metrics": metrics,
        "systems": systems,
        "kinds": {name: _kind(name, results) for name in systems},
        "best": {metric: max(values[metric]["mean"] for values in systems.values()) for metric in metrics},
        "rival": results.get("strongest_baseline"),
        "difference": results.get("differences", {}).get(OWN),
        "tuned": results.get("tuned", {}),
        "plots": plots,
    }


def _slices(results: Mapping[str, Any]) -> list[tuple[str, Any, list[DotRow]]]:
    """(slice, chart, rows) on one common axis."""
    panels = {
        name: [
            DotRow(
                value,
                one["queries"],
                [(system, scores[SLICED], _kind(system, results)) for system, scores in one["systems"].items()],
            )
            for value, one in values.items()
        ]
        for name, values in results.get("slices", {}).items()
        if values
    }
    found = [value for rows in panels.values() for row in rows for _, value, _ in row.dots]
    if not found:
        return []
    return [(name, dot_plot(name, rows, min(found), max(found)), rows) for name, rows in panels.items()]


def _levels(sids: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": chr(ord("a") + level),
            "size": len(counts),
            "used": sum(count > 0 for count in counts),
            "largest": max(counts) / max(sum(counts), 1),
            "plot": usage_plot(f"level {chr(ord('a') + level)}", counts),
        }
        for level, counts in enumerate(sids["usage"])
    ]


def _searches(searches: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """(query, answers) with the answers to one query side by side."""
    return [(query, list(group)) for query, group in itertools.groupby(searches, key=lambda one: one["query"])]


def _optional(path: Path) -> Any:
    return read_json(path) if path.exists() else None
