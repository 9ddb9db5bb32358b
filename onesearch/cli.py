"""The command `onesearch`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from onesearch.errors import UserError
from onesearch.settings import Settings

if TYPE_CHECKING:
    from onesearch.run import Run

RUN = Path("runs/demo")
RunOption = Annotated[Path, typer.Option("--run", metavar="FOLDER", help="The run folder.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="YAML of settings; options given here count more.")
]


class Commands(TyperGroup):
    """Tells mistakes of the user in one line on stderr, and keeps tracebacks for mistakes of the program."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, OSError) as error:
            if ctx.params["debug"] or (isinstance(error, OSError) and (error.filename is None or error.errno is None)):
                raise
            message = str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror}"
            typer.echo(f"onesearch: {' '.join(message.split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.echo("\nonesearch: interrupted; the same command goes on where it was", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog="Example: onesearch demo")
def onesearch(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """From a shopping log to personalised search: one model that answers a query, for one user, with items."""


@app.command(epilog="Example: onesearch demo --run runs/demo")
def demo(run: RunOption = RUN, config: ConfigOption = None) -> None:
    """Do everything on a real shopping log and show the results; goes on where it was."""
    from onesearch.demo import demo as run_demo

    run_demo(run, None if config is None else Settings.read(config), Console())


@app.command(epilog="Example: onesearch prepare --run runs/mine --source jsonl --path my-log")
def prepare(
    run: RunOption = RUN,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which kind of log.", show_default="completejourney")
    ] = None,
    path: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder of the source.")] = None,
    on_error: Annotated[
        str | None, typer.Option(metavar="stop|skip", help="At rows that break the schema.", show_default="stop")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Start a run: turn a source into a corpus."""
    from onesearch.run import Run

    settings = Settings() if config is None else Settings.read(config)
    given = {"source": source, "path": None if path is None else str(path), "on_error": on_error}
    options = {name: value for name, value in given.items() if value is not None}
    _do("prepare", Run.create(run, Settings.of({**asdict(settings), **options}, place="command line")))


@app.command(epilog="Example: onesearch embed --run runs/demo")
def embed(run: RunOption = RUN) -> None:
    """Turn the catalogue's texts into vectors."""
    _do("embed", _open(run))


@app.command(epilog="Example: onesearch quantize --run runs/demo")
def quantize(run: RunOption = RUN) -> None:
    """Turn vectors into semantic IDs."""
    _do("quantize", _open(run))


@app.command(epilog="Example: onesearch train --run runs/demo")
def train(run: RunOption = RUN) -> None:
    """Train the generator; several processes and other settings: accelerate launch training/sft.py."""
    _do("train", _open(run))


@app.command(epilog="Example: onesearch evaluate --run runs/demo")
def evaluate(run: RunOption = RUN) -> None:
    """Compare the generator with the baselines on held-out searches, and write the report."""
    from onesearch.files import read_json
    from onesearch.tables import slices_table, systems_table

    opened = _open(run)
    for name in ("evaluate", "search", "report"):
        _do(name, opened)
    results = read_json(run / "eval/recall.json")
    Console().print(systems_table(results), slices_table(results))


@app.command(epilog='Example: onesearch generate --run runs/demo --query "cold cereal" --user 1001 -k 10')
def generate(
    run: RunOption = RUN,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="What is searched.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Who searches; nobody in particular if left out.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="NUMBER", help="How many items.")] = 10,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input", metavar="FILE", help='Requests, a JSON line each: {"query": ..., "user": ..., "k": ...}'
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Answers to --input, a JSON line each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Answer a query with items, or a file of queries."""
    if (query is None) == (source is None):
        raise UserError("give either --query or --input", place="command line", remedy='--query "cold cereal"')
    if (source is None) != (target is None):
        raise UserError("--input and --output belong together", place="command line", remedy="give both")
    if source is not None and target is not None:
        _generate_file(_open(run).folder, source, target, k)
        return
    from onesearch.retriever import Request, Retriever
    from onesearch.tables import answer_table

    answer = asdict(Retriever.load(_open(run).folder).search([Request(query or "", user)], k)[0])
    console = Console()
    if as_json:
        console.print_json(data=answer)
    else:
        console.print(answer_table(answer))


@app.command(epilog="Example: onesearch show --run runs/demo")
def show(run: RunOption = RUN) -> None:
    """Show what a run holds: corpus, semantic IDs, steps, results."""
    from onesearch.files import read_json
    from onesearch.tables import facts_table, steps_table, systems_table

    opened, console = _open(run), Console()
    for title, path, part in (("corpus", "corpus/corpus.json", None), ("semantic IDs", "sid/usage.json", "metrics")):
        if (run / path).exists():
            facts = read_json(run / path)
            facts = facts if part is None else {"level sizes": facts["level_sizes"], **facts[part]}
            console.print(facts_table(title, facts))
    console.print(steps_table(opened.manifest))
    if (run / "eval/recall.json").exists():
        console.print(systems_table(read_json(run / "eval/recall.json")))


def _open(folder: Path) -> Run:
    from onesearch.run import Run

    return Run.open(folder)


def _do(name: str, run: Run) -> None:
    from onesearch.demo import do
    from onesearch.pipeline import STEPS

    with run.lock():
        do(STEPS[name], run, Console(stderr=True))


def _generate_file(folder: Path, source: Path, target: Path, k: int) -> None:
    from rich.progress import Progress

    from onesearch.batch import answer_file
    from onesearch.retriever import Retriever

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("searching", total=None)
        count = answer_file(
            Retriever.load(folder), source, target, k, lambda done, total: bar.update(task, completed=done, total=total)
        )
    typer.echo(f"{count:,} answers in {target}", err=True)


def main() -> None:
    """The entry point of the command."""
    app()


if __name__ == "__main__":
    main()
