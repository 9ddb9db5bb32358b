"""What the terminal shows: answers, result tables and the content of a run, rendered from plain dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

METRICS = ("recall@1", "recall@5", "recall@10", "recall@50", "mrr@10", "ndcg@10")
SLICE_METRIC = "mrr@10"


def spell_metric(name: str) -> str:
    """A metric's usual spelling.

    >>> spell_metric("ndcg@10"), spell_metric("recall@5")
    ('NDCG@10', 'Recall@5')
    """
    kind, _, cutoff = name.partition("@")
    return f"{'Recall' if kind == 'recall' else kind.upper()}@{cutoff}"


def spell_number(value: float, signed: bool = False, digits: int = 3) -> str:
    """Three decimals or another number, no leading zero, as results are printed in papers.

    >>> spell_number(0.5084), spell_number(-0.02, signed=True), spell_number(1.0)
    ('.508', '-.020', '1.000')
    """
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 - 0.5 * 10**-digits else text


def spell_change(change: Mapping[str, float]) -> str:
    """A difference with its interval.

    >>> spell_change({"mean": 0.004, "low": -0.001, "high": 0.008})
    '+.004 (-.001 to +.008)'
    """
    mean, low, high = (spell_number(change[name], signed=True) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def answer_table(answer: Mapping[str, Any]) -> Group:
    """One search: its hits as a table, and the purchases that the model was given."""
    user = f"for household {answer['user']}" if answer["user"] is not None else "for nobody in particular"
    if answer["query"]:
        title = Text.assemble(("“", "dim"), (answer["query"], "bold"), ("”", "dim"), f" {user}")
    else:
        title = Text(user.replace("household", "user"))
    table = _table()
    table.add_column("#", justify="right", style="dim")
    table.add_column("item", style="dim", no_wrap=True)
    table.add_column("title", ratio=1, overflow="fold", min_width=18)
    table.add_column("brand", max_width=14)
    table.add_column("price", justify="right")
    table.add_column("score", justify="right")
    table.add_column("bought", justify="right", no_wrap=True)
    offered = any(hit.get("on_offer") for hit in answer["hits"])
    if offered:
        table.add_column("on offer", overflow="fold")
    table.add_column("semantic ID", style="dim", overflow="fold")
    for rank, hit in enumerate(answer["hits"], 1):
        price = "" if hit["price"] is None else f"{hit['price']:.2f}"
        mark = Text(f"✓ {hit['bought_before']}×", "green") if hit["bought_before"] else ""
        plain = (str(rank), hit["item_id"], escape(hit["title"]), escape(hit["brand"] or ""), price)
        kinds = [escape(", ".join(hit["on_offer"]))] if offered else []
        table.add_row(*plain, f"{hit['score']:.2f}", mark, *kinds, escape(hit["sid"]))
    parts: list[Any] = [title, table if answer["hits"] else Text("  no item fits", "yellow")]
    if answer["note"]:
        parts.append(Text(f"  {answer['note']}", "yellow"))
    if answer["hits"] and "exact" in answer:  # a run of an earlier version does not say
        parts.append(Text(f"  {certificate(answer)}", "dim"))
    if answer["given"]:
        parts.append(Padding(given_text(answer["given"]), (0, 0, 0, 2)))
    return Group(*parts)


def certificate(answer: Mapping[str, Any]) -> str:
    """What is certain about an answer.

    >>> certificate({"exact": True, "mass": None})
    'certain: no other item scores higher'
    >>> certificate({"exact": False, "mass": (0.911, 0.956)})
    'not certain: the beam may have missed an item; the catalogue has 91–96 % of all probability'
    """
    told = (
        "certain: no other item scores higher" if answer["exact"] else "not certain: the beam may have missed an item"
    )
    if answer["mass"] is None:
        return told
    least, most = (f"{100 * one:.0f}" for one in answer["mass"])
    return f"{told}; the catalogue has {least if least == most else f'{least}–{most}'} % of all probability"


def given_text(given: Sequence[Mapping[str, Any]], most: int = 5) -> Text:
    """The purchases that the model was given, the most relevant first."""
    text = Text("why: the model was given ", "dim")
    for place, one in enumerate(given[:most]):
        ago = "" if one["days_ago"] is None else f", {one['days_ago']:.0f} days ago"
        text.append("; " if place else "", "dim").append(one["title"]).append(f" ({one['times']}×{ago})", "dim")
    return text.append(f"; and {len(given) - most} more" if len(given) > most else "", "dim")


def _change(one: Mapping[str, float], digits: int) -> Text:
    """A difference above its interval, coloured where that excludes 0."""
    colour = "green" if one["low"] > 0 else "red" if one["high"] < 0 else ""
    low, high = (spell_number(one[end], signed=True, digits=digits) for end in ("low", "high"))
    return Text(spell_number(one["mean"], signed=True, digits=digits), colour).append(f"\n{low}\nto {high}", "dim")


def systems_table(results: Mapping[str, Any]) -> Table:
    """Systems by metrics with 95 % intervals, best in bold; then the paired difference to the strongest baseline."""
    systems = results["systems"]
    table = _table(f"{results['queries']:,} held-out searches, mean and 95 % interval")
    table.add_column("", no_wrap=True)
    wanted = results.get("shown", METRICS)
    shown = [metric for metric in wanted if all(metric in values for values in systems.values())]
    digits = 4 if "shown" in results else 3
    for metric in shown:
        table.add_column(spell_metric(metric), justify="right", no_wrap=True)
    best = {metric: max(values[metric]["mean"] for values in systems.values()) for metric in shown}
    for name, values in systems.items():
        cells = []
        for metric in shown:
            one = values[metric]
            cell = Text(spell_number(one["mean"], digits=digits), "bold green" if one["mean"] == best[metric] else "")
            span = f"\n{spell_number(one['low'], digits=digits)}–{spell_number(one['high'], digits=digits)}"
            cells.append(cell.append(span, "dim not bold"))
        table.add_row(Text(name, "bold" if name == "generator" else ""), *cells)
    strongest = results.get("strongest_baseline")
    compared = {
        f"generator\n− {strongest}": results.get("differences", {}).get("generator") if strongest else None,
        "aligned\n− generator": results.get("alignment"),
    }
    for name, difference in compared.items():
        if difference:
            table.add_section()
            table.add_row(name, *(_change(difference[metric], digits) for metric in shown))
    if "unseen" in results:
        table.add_section()
        for name, values in results["unseen"].items():
            cells = [Text(spell_number(values[metric]["mean"], digits=digits)) for metric in shown]
            table.add_row(Text(f"{name}, unseen", "dim"), *cells)
    return table


def slices_table(results: Mapping[str, Any], metric: str = SLICE_METRIC) -> Table:
    """One metric of every system on every slice of the requests."""
    systems = list(results["systems"])
    table = _table(f"{spell_metric(metric)} by slice")
    table.add_column("")
    table.add_column("searches", justify="right", style="dim")
    for name in systems:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for slice_name, values in results["slices"].items():
        table.add_section()
        for value, one in values.items():
            found = {name: one["systems"][name][metric] for name in systems if name in one["systems"]}
            best = max(found.values(), default=None)
            cells = [
                Text(spell_number(found[name]), "bold green" if found[name] == best else "") if name in found else ""
                for name in systems
            ]
            table.add_row(Text.assemble((f"{slice_name} ", "dim"), value), f"{one['queries']:,}", *cells)
    return table


def steps_table(manifest: Mapping[str, Any]) -> Table:
    """Which steps are done, and how long each took."""
    table = _table("steps")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_column("made")
    for name, record in manifest["steps"].items():
        table.add_row(name, f"{record['seconds']:,.1f}", " ".join(record["outputs"]))
    return table


def facts_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Names and values, one a row."""
    table = _table(title)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in facts.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        text = spell_number(value) if isinstance(value, float) else text
        table.add_row(name.replace("_", " "), escape(text))
    return table


def _table(title: str | None = None) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
