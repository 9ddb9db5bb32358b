"""What the ranking evaluation finds: metrics of every scorer with intervals, differences to one, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from eval.auc import auc, group_auc
from eval.calibration import BINS, Reliability, calibration_error, equal_bins, predicted_over_observed, reliability
from eval.charts import Line, reliability_plot
from eval.metrics import Bootstrap, Drawn, per_list
from eval.ranked_lists import RankedLists
from onesearch.tables import spell_number

LISTED: Final = ("mrr@10", "ndcg@5", "ndcg@10")
METRICS: Final = ("auc", "gauc-user", "gauc-query", *LISTED)
NOTHING: Final = {"mean": None}
CALIBRATION: Final = ("ece", "field-ece", "pcoc")
_SPELLED: Final = {"auc": "AUC", "gauc-user": "gAUC, user", "gauc-query": "gAUC, search", "ece": "ECE", "pcoc": "PCOC"}


@dataclass(frozen=True)
class Scored:
    """What one scorer made of the lists.

    Attributes:
        scores: (Q, K) float64, -inf in empty places. probability: (Q, K) of being right, None for a scorer that is not
            calibrated.
    """

    scores: NDArray[np.float64]
    probability: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Measured:
    """Values of one scorer with their draws, its reliability, and (Q,) values of each list."""

    values: dict[str, Drawn]
    reliability: Reliability | None
    of_lists: dict[str, NDArray[np.float64]]
    counted: dict[str, dict[str, int]]


def measure(
    lists: RankedLists,
    scored: Mapping[str, Scored],
    against: str,
    *,
    field: NDArray[np.int64] | None = None,
    bins: int = BINS,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[str, Measured]]:
    """The report for JSON, and what it was made from.

    AUC and calibration are of all pairs; a list without anything right has no rank of it and no AUC of its own, so it
    is left out of the others. What is not defined is None.

    Args:
        against: the scorer that the others are compared with.
        field: (N,) a value of each item, for field-ECE; None leaves it out.
    """
    draws = Bootstrap(lists.user, seed=seed)
    measured = {name: _measure(lists, one, draws, field, bins) for name, one in scored.items()}
    base = measured[against].values
    first = next(iter(measured.values()))
    report: dict[str, Any] = {
        "about": lists.about,
        **lists.counts(),
        "gauc": first.counted,
        "scorers": {
            name: {metric: _plain(value.estimate().as_dict()) for metric, value in one.values.items()}
            for name, one in measured.items()
        },
        "against": against,
        "differences": {
            name: {metric: _difference(value, base[metric]) for metric, value in one.values.items() if metric in base}
            for name, one in measured.items()
            if name != against
        },
        "reliability": {
            name: {
                "predicted": one.reliability.predicted.tolist(),
                "observed": one.reliability.observed.tolist(),
                "pairs": one.reliability.pairs.tolist(),
            }
            for name, one in measured.items()
            if one.reliability is not None
        },
    }
    return report, measured


def _difference(value: Drawn, other: Drawn) -> dict[str, float | None]:
    found = value.minus(other)
    return _plain({**found.estimate().as_dict(), "p": found.p_value()})


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no nan."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _measure(
    lists: RankedLists, scored: Scored, draws: Bootstrap, field: NDArray[np.int64] | None, bins: int
) -> Measured:
    there, row = lists.there, lists.row
    score, right = scored.scores[there], lists.right[there]
    of_user = group_auc(score, right, draws.group[row], row, draws)
    of_query = group_auc(score, right, row, row, draws)
    values = {"auc": auc(score, right, row, draws), "gauc-user": of_user.drawn, "gauc-query": of_query.drawn}
    order = np.argsort(-scored.scores, axis=1, kind="stable")
    items, labels = (np.take_along_axis(one, order, axis=1) for one in (lists.items, lists.labels))
    of_lists = per_list(items, labels, LISTED)
    counts = np.asarray(lists.right.any(axis=1), np.float64)
    values |= {metric: draws.ratio(found * counts, counts) for metric, found in of_lists.items()}
    curve = None
    if scored.probability is not None:
        predicted = scored.probability[there]
        bin_of = equal_bins(predicted, bins)
        curve = reliability(predicted, right, bin_of)
        values["ece"] = calibration_error(predicted, right, bin_of, row, draws)
        if field is not None:
            values["field-ece"] = calibration_error(predicted, right, field[lists.items[there]], row, draws)
        values["pcoc"] = predicted_over_observed(predicted, right, row, draws)
    counted = {
        name: {"counted": one.counted, "groups": one.groups} for name, one in (("user", of_user), ("query", of_query))
    }
    return Measured(values, curve, {**of_lists, "right": lists.right.sum(axis=1).astype(np.float64)}, counted)


def reliability_picture(measured: Mapping[str, Measured]) -> str | None:
    """An SVG with a curve for each calibrated scorer, None where there is none."""
    curves = [
        Line(name, list(zip(curve.predicted.tolist(), curve.observed.tolist(), strict=True)))
        for name, curve in ((name, one.reliability) for name, one in measured.items())
        if curve is not None
    ]
    return str(reliability_plot("Predicted and observed shares", curves)) if curves else None


def ranking_table(report: Mapping[str, Any]) -> Group:
    """What the lists are, every scorer by every metric with its interval, and the differences."""
    lists = (
        f"{report['lists']:,} lists of {report['users']:,} users, {report['pairs']:,} pairs, {report['right']:,} right"
    )
    notes = [
        f"{report['lists_without_right']:,} lists without anything right count in AUC and calibration only",
        f"{report['lists_all_right']:,} lists with right items only have no AUC of their own",
        f"{report['right_outside']:,} right items are in no list",
    ]
    parts: list[Any] = [Text(report["about"]), Text(f"{lists}; {'; '.join(notes)}.", "dim")]
    parts += [Text(f"note: {note}", "yellow") for note in report.get("notes", [])]
    parts.append(_table("mean and 95 % interval, drawing whole users", report["scorers"], METRICS, _value))
    title = f"difference to {report['against']}: paired, 95 % interval, p of no difference"
    parts.append(_table(title, report["differences"], METRICS, _change))
    calibrated = {name: one for name, one in report["scorers"].items() if "ece" in one}
    if calibrated:
        parts.append(_table("probabilities: 0 is best for ECE, 1 for PCOC", calibrated, CALIBRATION, _fine))
    return Group(*parts)


def _table(title: str, rows: Mapping[str, Any], metrics: Sequence[str], cell: Any) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    shown = [metric for metric in metrics if any(metric in row for row in rows.values())]
    for metric in shown:
        table.add_column(spell_measure(metric), justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(
            name, *("" if row.get(metric, NOTHING)["mean"] is None else cell(row[metric]) for metric in shown)
        )
    return table


def spell_measure(name: str) -> str:
    """
    >>> spell_measure("gauc-query"), spell_measure("ndcg@10"), spell_measure("field-ece")
    ('gAUC, search', 'NDCG@10', 'field-ECE')
    """
    return _SPELLED.get(name, name.upper().replace("FIELD", "field"))


def _value(one: Mapping[str, float]) -> str:
    return f"{spell_number(one['mean'])}\n{spell_number(one['low'])}–{spell_number(one['high'])}"


def _fine(one: Mapping[str, float]) -> str:
    return f"{one['mean']:.4g}\n{one['low']:.4g}–{one['high']:.4g}"


def _change(one: Mapping[str, float]) -> str:
    mean, low, high = (spell_number(one[name], signed=True) for name in ("mean", "low", "high"))
    return f"{mean}\n{low} to {high}\np {one['p']:.3f}"
