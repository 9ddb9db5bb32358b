"""`onesearch demo`: every step with a progress bar, then the results; started again, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from rich.console import Console, Group
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

from onesearch.files import read_json
from onesearch.pipeline import STEPS, Step
from onesearch.run import Run
from onesearch.settings import Settings
from onesearch.tables import answer_table, slices_table, systems_table


def demo(folder: Path, settings: Settings | None, console: Console) -> None:
    """Do all steps that are not done, then show what came out.

    Args:
        settings: None for those of the run where there is one, and for the defaults where there is none.
    """
    started = time.perf_counter()
    if settings is None and (folder / "manifest.json").exists():
        run = Run.open(folder)
    else:
        run = Run.create(folder, settings or Settings())
    with run.lock(), watched_memory() as peak:
        steps = [step for step in STEPS.values() if step.needed(run)]
        for number, step in enumerate(steps, 1):
            do(step, run, console, f"{number}/{len(steps)} ")
    console.print()
    results = read_json(folder / "eval/recall.json")
    answers = read_json(folder / "eval/searches.json")
    console.print(results_view(results, answers))
    console.print(ending(folder / "report.html", time.perf_counter() - started, peak()), soft_wrap=True)


def do(step: Step, run: Run, console: Console, number: str = "", again: bool = False) -> bool:
    """Do one step under a progress bar that shows the time left; tell whether there was anything to do."""
    title = f"{number}{step.title}"
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        begun = step.do(run, lambda done, total: bar.update(task, completed=done, total=total), again)
    seconds = run.manifest["steps"][step.name]["seconds"]
    state = f"{seconds:,.1f} s" if begun else f"already done ({seconds:,.1f} s then)"
    console.print(Text.assemble(("✓ ", "green"), f"{title:<32}", (state, "dim")))
    return begun


def results_view(results: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Group:
    """The tables, then the searches: the same query for two users each."""
    parts: list[Any] = [systems_table(results), Text(), slices_table(results), Text()]
    if answers:
        asked = any(answer["query"] for answer in answers)
        title = "the same query, two households" if asked else "what comes after two histories"
        parts.append(Rule(title, align="left", style="dim"))
    for answer in answers:
        parts += [Text(), Padding(answer_table(answer), (0, 0, 0, 2))]
    return Group(*parts)


def ending(report: Path, seconds: float, peak: float) -> Text:
    """Where the report is, how long it took and how much memory."""
    minutes, rest = divmod(round(seconds), 60)
    return Text.assemble(
        "\nreport  ", (str(report), "bold"), f"\ntime    {minutes} min {rest:02d} s", f"\nmemory  {peak:.1f} GB at most"
    )


@contextmanager
def watched_memory() -> Iterator[Callable[[], float]]:
    """What is yielded gives the most that this process and those it started held together, in GB, since the beginning.

    Memory is looked at twice a second; what processes share, as files they read, counts for each.
    """
    most, over = 0, Event()

    def look() -> None:
        nonlocal most
        own = psutil.Process()
        while True:
            held = 0
            for one in [own, *own.children(recursive=True)]:
                with suppress(psutil.Error):  # it has just ended
                    held += one.memory_info().rss
            most = max(most, held)
            if over.wait(0.5):
                return

    watching = Thread(target=look, daemon=True)
    watching.start()
    try:
        yield lambda: most / 1e9
    finally:
        over.set()
        watching.join()
