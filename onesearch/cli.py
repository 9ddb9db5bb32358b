"""The command `onesearch`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from onesearch.errors import UserError
from onesearch.settings import Settings

if TYPE_CHECKING:
    from onesearch.pipeline import Step
    from onesearch.run import Run

RUN = Path("runs/demo")
RunOption = Annotated[Path, typer.Option("--run", metavar="FOLDER", help="The run folder.")]
StageOption = Annotated[
    str, typer.Option("--stage", metavar="NAME", help="The model in models/NAME of the run: sft is what `train` makes.")
]
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

    if (run / "assortment.next").exists():
        opened = _open(run)
        with opened.lock():
            _finish(opened)
    run_demo(run, None if config is None else Settings.read(config), Console())


@app.command(epilog="Example: onesearch prepare --run runs/mine --source jsonl --path my-log")
def prepare(
    run: RunOption = RUN,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which kind of log.", show_default="completejourney")
    ] = None,
    path: Annotated[Path | None, typer.Option(metavar="PATH", help="File or folder of the source.")] = None,
    on_error: Annotated[
        str | None,
        typer.Option(
            metavar="stop|skip|mend",
            help="At rows that break the schema; mend is skip, but keeps items without a title.",
            show_default="stop",
        ),
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
def embed(
    run: RunOption = RUN,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="Read the items' pictures too, with efficientnet-lite0 or a vision model; kept as the run's setting.",
        ),
    ] = None,
) -> None:
    """Turn the catalogue's texts, and if wanted its pictures, into vectors."""
    _do("embed", _open(run) if image_encoder is None else _with(_open(run), image_encoder=image_encoder))


@app.command(epilog="Example: onesearch quantize --run runs/demo --method khqe")
def quantize(
    run: RunOption = RUN,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|YAML", help="How, such as khqe or configs/quantizers/khqe.yaml; kept as the run's setting."
        ),
    ] = None,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="Print the semantic ID of a query instead.")] = None,
    photo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Print the semantic ID that a photo lands on instead.")
    ] = None,
    add: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add these items; no existing semantic ID moves.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="ID|FILE", help="Remove an item, or a file's; may be repeated.")
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit new codebooks on what is on sale now; semantic IDs move.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what is asked, or what changed, as JSON.")] = False,
) -> None:
    """Turn vectors into semantic IDs."""
    asks = query is not None or photo is not None
    if add is not None or remove:
        if asks or refit or method is not None:
            remedy = "give --query, --photo, --refit or --method in another command"
            raise UserError("--add and --remove keep the method", place="command line", remedy=remedy)
        _change_assortment(_open(run), add, remove or [], as_json)
        return
    if asks:
        if method is not None or refit or (query is not None and photo is not None):
            problem = "--query and --photo ask, --method and --refit change"
            raise UserError(problem, place="command line", remedy="give one of them")
        _print_sid(_open(run).folder, query, photo, as_json)
        return
    opened = _open(run) if method is None else _with(_open(run), method=method)
    _do("align", opened)
    if refit:
        _refit(opened, as_json)
    else:
        _do("quantize", opened)


@app.command(epilog="Example: onesearch train --run runs/demo")
def train(run: RunOption = RUN) -> None:
    """Train the generator, and align it with rewards; several processes and other settings: accelerate launch
    training/sft.py and training/grpo.py."""
    from onesearch.pipeline import STEPS

    opened = _open(run)
    _do("train", opened)
    if STEPS["reinforce"].needed(opened):
        _do("reinforce", opened)


@app.command(epilog="Example: onesearch evaluate --run runs/demo")
def evaluate(run: RunOption = RUN, stage: StageOption = "sft") -> None:
    """Compare the generator with the baselines on held-out searches, and write the report.

    The results of another stage than sft go to eval/STAGE, without a report.
    """
    from onesearch.files import read_json
    from onesearch.pipeline import STEPS, evaluation
    from onesearch.tables import slices_table, systems_table

    opened = _open(run)
    steps = [STEPS[name] for name in ("evaluate", "search", "report")] if stage == "sft" else [evaluation(stage)]
    for step in steps:
        _do(step, opened)
    results = read_json(run / steps[0].writes[0])
    Console().print(systems_table(results), slices_table(results))


@app.command(epilog='Example: onesearch generate --run runs/demo --query "cold cereal" --user 1001 -k 10')
def generate(
    run: RunOption = RUN,
    query: Annotated[str | None, typer.Option(metavar="TEXT", help="What is searched.")] = None,
    user: Annotated[
        str | None, typer.Option(metavar="ID", help="Who searches; nobody in particular if left out.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="NUMBER", help="How many items.")] = 10,
    stage: StageOption = "sft",
    where: Annotated[
        str | None,
        typer.Option(
            metavar="EXPR",
            help='Only items for which this SQL expression over the columns of items holds, such as "price < 5 and '
            "brand = 'Private'\" or, for a category and what is below it, \"array_contains(categories, 'CHEESE')\".",
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(metavar="ID|FILE", help="Only this item, or a file's; may be repeated.")
    ] = None,
    deny: Annotated[
        list[str] | None, typer.Option(metavar="ID|FILE", help="Not this item, or a file's; may be repeated.")
    ] = None,
    place: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where it is asked; where the user was last if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="With what it is asked.")] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help='Requests, a JSON line each: {"query": ..., "user": ..., "k": ..., "where": ..., "allow": [...], '
            '"deny": [...], "place": ..., "device": ...}; all but the query may be left out.',
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Answers to --input, a JSON line each.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="generate|interest|both",
            help="Generate semantic IDs, take the items nearest to the interest head's vector, or both together.",
        ),
    ] = "generate",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Answer a query with items, or a file of queries; a user's history alone is a query too: --user ID."""
    if query is None and user is not None and source is None:
        query = ""
    if (query is None) == (source is None):
        raise UserError("give either --query or --input", place="command line", remedy='--query "cold cereal"')
    if (source is None) != (target is None):
        raise UserError("--input and --output belong together", place="command line", remedy="give both")
    if source is not None and target is not None:
        if where is not None or allow or deny or place or device:
            remedy = f"write them into the lines of {source}"
            problem = "--where, --allow, --deny, --place and --device are about --query"
            raise UserError(problem, place="command line", remedy=remedy)
        _generate_file(_open(run).folder, source, target, k, stage, mode)
        return
    from onesearch.retriever import Request, Retriever, check_mode
    from onesearch.tables import answer_table
    from onesearch.where import Filter, item_ids

    opened = _open(run)
    wanted = Filter(where, item_ids(allow) if allow else None, item_ids(deny or ()))
    asked = Request(query or "", user, wanted, place, device)
    retriever = Retriever.load(opened.folder, stage)
    retriever.check(asked, place="command line")
    answer = asdict(retriever.search([asked], k, check_mode(retriever.reader, mode))[0])
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
            facts = {name: value for name, value in facts.items() if not isinstance(value, dict)}  # without the arrays
            console.print(facts_table(title, facts))
    console.print(steps_table(opened.manifest))
    if (run / "eval/recall.json").exists():
        console.print(systems_table(read_json(run / "eval/recall.json")))


def _open(folder: Path) -> Run:
    from onesearch.run import Run

    return Run.open(folder)


def _with(run: Run, **setting: str) -> Run:
    """The run with this setting, once its method is known to be one."""
    from onesearch.methods import find_method
    from onesearch.run import Run

    settings = replace(run.settings, **setting)  # type: ignore[arg-type]  # all of them are texts
    find_method(settings)
    return Run.create(run.folder, settings)


def _print_sid(folder: Path, query: str | None, photo: Path | None, as_json: bool) -> None:
    from onesearch.landing import photo_semantic_id, query_semantic_id

    answer = query_semantic_id(folder, query or "") if photo is None else photo_semantic_id(folder, photo)
    if as_json:
        Console().print_json(data=answer)
    else:
        typer.echo(answer["sid"])


def _change_assortment(run: Run, add: Path | None, remove: list[str], as_json: bool) -> None:
    from onesearch.assortment import change
    from onesearch.tables import facts_table

    report = change(run, add, remove)
    console = Console()
    if as_json:
        console.print_json(data=asdict(report))
    else:
        console.print(facts_table(f"assortment, version {report.version}", report.facts()))


def _refit(run: Run, as_json: bool) -> None:
    from onesearch.demo import do
    from onesearch.pipeline import STEPS
    from onesearch.refit import refit
    from onesearch.tables import facts_table

    console = Console()
    with run.lock():
        _finish(run)
        report = refit(run, lambda: do(STEPS["quantize"], run, Console(stderr=True), again=True))
    if as_json:
        console.print_json(data=asdict(report))
    else:
        console.print(facts_table(f"new codebooks, version {report.version}", report.facts()))


def _finish(run: Run) -> None:
    """Carry out a change of the assortment that was interrupted, before anything else is done with the run."""
    if (run.folder / "assortment.next").exists():  # see `onesearch.assortment.NEXT`
        from onesearch.assortment import finish

        finish(run)


def _do(step: str | Step, run: Run) -> None:
    from onesearch.demo import do
    from onesearch.pipeline import STEPS

    with run.lock():
        _finish(run)
        wanted = STEPS[step] if isinstance(step, str) else step
        if wanted.needed(run):
            do(wanted, run, Console(stderr=True))


def _generate_file(folder: Path, source: Path, target: Path, k: int, stage: str, mode: str) -> None:
    from rich.progress import Progress

    from onesearch.batch import answer_file
    from onesearch.retriever import Retriever, check_mode

    console = Console(stderr=True)
    retriever = Retriever.load(folder, stage)
    known = check_mode(retriever.reader, mode)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("searching", total=None)
        count = answer_file(
            retriever, source, target, k, lambda done, total: bar.update(task, completed=done, total=total), known
        )
    typer.echo(f"{count:,} answers in {target}", err=True)


def main() -> None:
    """The entry point of the command."""
    app()


if __name__ == "__main__":
    main()
