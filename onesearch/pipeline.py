"""The steps from a log to a report: what each reads, writes and depends on, and the call that does it.

Every step is short: the work is in the packages it calls, which are imported when the step runs, so that
`onesearch --help` does not wait for torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from onesearch.files import write_json
from onesearch.run import Run, stamps

Progress = Callable[[int, int], None]
"""Called with (done, total) while a step works."""
PICTURES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Files beside a log that the step `embed` reads, and `prepare` does not."""


@dataclass(frozen=True)
class Step:
    """One step of a run; see `Run.step` for `settings`, `reads` and `writes`.

    Attributes:
        title: what it does, for the progress bar.
        needed: whether this run has anything for it to do.
        inputs: what it depends on besides, read from the settings.
    """

    name: str
    title: str
    work: Callable[[Run, Progress], None]
    settings: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: Callable[[Run], dict[str, Any]] = lambda run: {}
    needed: Callable[[Run], bool] = lambda run: True

    def do(self, run: Run, progress: Progress, again: bool = False) -> bool:
        """Do the step unless it is done already and not wanted `again`; tell whether it was done now."""
        return run.step(
            self.name,
            lambda: self.work(run, progress),
            settings=self.settings,
            reads=self.reads,
            writes=self.writes,
            inputs=self.inputs(run),
            again=again,
        )


def prepare(run: Run, progress: Progress) -> None:
    """Turn the source into a corpus."""
    from onesearch.corpus import sources
    from onesearch.methods import find_method

    settings = run.settings
    find_method(settings)  # a mistake in a later step's settings must not wait until that step
    for left in run.folder.glob(".corpus.*"):  # of a process that was killed, and may be as large as the log
        shutil.rmtree(left)
    sources.prepare(
        settings.source,
        run.folder / "corpus",
        path=settings.source_path,
        on_error=settings.on_error,
        seed=settings.seed,
        users=settings.users,
        progress=progress,
    )
    _mend(run)


def _mend(run: Run) -> None:
    """Learn how the words of queries are read, from the events to train on."""
    from onesearch.corpus import TRAIN, Corpus, make_split
    from onesearch.corpus.spelling import mend

    corpus, split = Corpus.load(run.folder / "corpus"), run.settings.split
    splits = corpus.has_clock or split != "time"  # otherwise no later step goes on before that setting is changed
    if run.settings.spelling and corpus.queries and splits:
        mend(corpus, make_split(corpus, split) == TRAIN)


def embed(run: Run, progress: Progress) -> None:
    """Turn the catalogue's texts, and its pictures if they are wanted, into vectors."""
    from onesearch.corpus import Corpus, item_texts
    from onesearch.embed import embed_catalogue, load_text_encoder
    from onesearch.embed.pictures import VIEWS, embed_pictures

    corpus, encoder = Corpus.load(run.folder / "corpus"), load_text_encoder(run.settings.encoder)
    embed_catalogue(item_texts(corpus), encoder, run.folder / "embeddings", progress=progress)
    embed_pictures(corpus.items, run.settings, run.folder / VIEWS, progress)


def align(run: Run, progress: Progress) -> None:
    """Learn from the log how to move the vectors."""
    from training.align import align_run

    align_run(run, progress)


def quantize(run: Run, progress: Progress) -> None:
    """Turn vectors into semantic IDs."""
    from onesearch.semantic_ids import make_semantic_ids

    make_semantic_ids(run)


def train(run: Run, progress: Progress) -> None:
    """Train the model on the log."""
    if run.settings.model == "sequence":
        from training.sequence import train_run
    else:
        from training.sft import train_run
    train_run(run, progress)


def reinforce(run: Run, progress: Progress) -> None:
    """Align the generator with rewards, into a model of its own."""
    from training.grpo import train_run

    train_run(run, progress)


def evaluate(run: Run, progress: Progress, stage: str = "sft") -> None:
    """Compare the generator with the baselines on held-out searches."""
    from eval.recall import evaluate_run

    evaluate_run(run.folder, progress, stage)


def search(run: Run, progress: Progress) -> None:
    """Answer a few queries for two users each, to look at."""
    from onesearch.corpus import Corpus
    from onesearch.retriever import Request, Retriever
    from onesearch.showcase import choose

    chosen = choose(Corpus.load(run.folder / "corpus"))
    requests = [Request(one.query, user) for one in chosen for user in one.users]
    answers = Retriever.load(run.folder).search(requests, 5)
    write_json(run.folder / "eval/searches.json", [asdict(answer) for answer in answers])


def report(run: Run, progress: Progress) -> None:
    """Write the report as one page."""
    from eval.report import write_report

    write_report(run.folder)


def _source_files(run: Run) -> dict[str, Any]:
    path = run.settings.source_path
    return {} if path is None or not path.exists() else {"source": stamps(path, PICTURES)}


def _pictures(run: Run) -> dict[str, Any]:
    from onesearch.embed.pictures import picture_inputs

    return picture_inputs(run.folder, run.settings)


def _method(run: Run) -> dict[str, Any]:
    from onesearch.semantic_ids import method_inputs

    return method_inputs(run)


def _config(setting: str) -> Callable[[Run], dict[str, Any]]:
    """The file that a setting names is an input."""

    def inputs(run: Run) -> dict[str, Any]:
        path = getattr(run.settings, setting)
        return {} if path is None or not Path(path).exists() else {setting: stamps(Path(path))}

    return inputs


def _aligned(run: Run) -> dict[str, Any]:
    """The model that the step `reinforce` made, where there is one."""
    folder = run.folder / "models/grpo"
    return {"aligned": stamps(folder)} if run.settings.reinforce and (folder / "config.json").exists() else {}


def _aligns(run: Run) -> bool:
    """Whether the method wants an alignment that nobody has made by hand with training/align.py."""
    from onesearch.methods import find_method

    by_hand = (run.folder / "models/align/config.json").exists() and "align" not in run.manifest["steps"]
    return find_method(run.settings).align and not by_hand


STEPS = {
    step.name: step
    for step in (
        Step(
            "prepare",
            "read the log",
            prepare,
            ("source", "path", "on_error", "users", "seed", "spelling", "split"),
            (),
            ("corpus",),
            _source_files,
        ),
        Step("embed", "embed the catalogue", embed, ("encoder",), ("corpus",), ("embeddings",), _pictures),
        Step(
            "align",
            "align vectors with the log",
            align,
            ("split", "seed", "encoder"),
            ("corpus", "embeddings"),
            ("models/align",),
            _config("align"),
            _aligns,
        ),
        Step(
            "quantize",
            "make semantic IDs",
            quantize,
            ("split", "seed", "encoder"),
            ("corpus", "embeddings"),
            ("sid",),
            _method,
        ),
        Step(
            "train",
            "train the generator",
            train,
            ("split", "seed", "encoder", "model"),
            ("corpus", "embeddings", "sid"),
            ("models/sft",),
            _config("sft"),
        ),
        Step(
            "reinforce",
            "align it with rewards",
            reinforce,
            ("split", "seed", "encoder", "model"),
            ("corpus", "embeddings", "sid", "models/sft"),
            ("models/grpo",),
            _config("grpo"),
            lambda run: run.settings.reinforce and run.settings.model == "generator",
        ),
        Step(
            "evaluate",
            "compare with the baselines",
            evaluate,
            ("split", "seed", "encoder", "valid_requests", "test_requests", "reinforce"),
            ("corpus", "embeddings", "sid", "models/sft"),
            ("eval/recall.json",),
            _aligned,
        ),
        Step(
            "search", "search for two households", search, (), ("corpus", "sid", "models/sft"), ("eval/searches.json",)
        ),
        Step(
            "report",
            "write the report",
            report,
            (),
            ("sid/usage.json", "eval/recall.json", "eval/searches.json"),
            ("report.html",),
        ),
    )
}
"""All steps in the order of the demo."""


def evaluation(stage: str) -> Step:
    """The step that compares the model of another stage with the baselines; it writes to `eval/STAGE`."""
    return replace(
        STEPS["evaluate"],
        name=f"evaluate {stage}",
        title=f"compare {stage} with the baselines",
        work=partial(evaluate, stage=stage),
        reads=("corpus", "embeddings", "sid", f"models/{stage}"),
        inputs=lambda run: {},
        writes=(f"eval/{stage}/recall.json",),
    )
