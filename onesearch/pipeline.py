"""The steps from a log to a report: what each reads, writes and depends on, and the call that does it.

Every step is short: the work is in the packages it calls, which are imported when the step runs, so that
`onesearch --help` does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onesearch.errors import UserError
from onesearch.files import atomic_path, write_json
from onesearch.run import Run, stamps

Progress = Callable[[int, int], None]
"""Called with (done, total) while a step works."""


@dataclass(frozen=True)
class Step:
    """One step of a run; see `Run.step` for `settings`, `reads` and `writes`.

    Attributes:
        title: what it does, for the progress bar.
        inputs: what it depends on besides, read from the settings.
    """

    name: str
    title: str
    work: Callable[[Run, Progress], None]
    settings: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    inputs: Callable[[Run], dict[str, Any]] = lambda run: {}

    def do(self, run: Run, progress: Progress) -> bool:
        """Do the step unless it is done already; tell whether it was done now."""
        return run.step(
            self.name,
            lambda: self.work(run, progress),
            settings=self.settings,
            reads=self.reads,
            writes=self.writes,
            inputs=self.inputs(run),
        )


def prepare(run: Run, progress: Progress) -> None:
    """Turn the source into a corpus."""
    from onesearch.corpus import sources

    settings = run.settings
    path = None if settings.path is None else Path(settings.path)
    sources.prepare(
        settings.source,
        run.folder / "corpus",
        path=path,
        on_error=settings.on_error,
        seed=settings.seed,
        users=settings.users,
    )


def embed(run: Run, progress: Progress) -> None:
    """Turn the catalogue's texts into vectors."""
    from onesearch.corpus import Corpus, item_texts
    from onesearch.embed import embed_catalogue, load_text_encoder

    texts = item_texts(Corpus.load(run.folder / "corpus"))
    embed_catalogue(texts, load_text_encoder(run.settings.encoder), run.folder / "embeddings", progress=progress)


def quantize(run: Run, progress: Progress) -> None:
    """Turn vectors into semantic IDs."""
    import numpy as np

    from onesearch.corpus import TRAIN, Corpus, make_split
    from onesearch.embed import behaviour_vectors
    from onesearch.sid import SidTable
    from quantizers.metrics import independent_coding_rate, reconstruction_error
    from quantizers.residual_kmeans import ResidualKMeans
    from quantizers.uniqueness import append_rank_level

    settings = run.settings
    corpus = Corpus.load(run.folder / "corpus")
    vectors = np.load(run.folder / "embeddings/vectors.npy", mmap_mode="r")
    split = make_split(corpus, settings.split)
    if not 0 <= settings.behaviour <= 1:
        raise UserError("a share lies between 0 and 1", place="behaviour", value=settings.behaviour)
    if settings.behaviour:
        bought = behaviour_vectors(corpus, split, 64, settings.seed)
        vectors = np.hstack([vectors * (1 - settings.behaviour), bought * settings.behaviour])
    quantizer = ResidualKMeans(settings.level_sizes, seed=settings.seed)
    quantizer.fit(np.unique(vectors, axis=0))  # a text that many items share counts once
    codes = learned = quantizer.encode(vectors)
    sizes: tuple[int, ...] = settings.level_sizes
    known = split == TRAIN
    popularity = np.bincount(corpus.item[known], minlength=len(corpus.items))
    by_popularity = np.argsort(np.argsort(-popularity, kind="stable"), kind="stable").astype(np.int32)
    if settings.last_level is not None:
        codes = append_rank_level(learned, by_popularity, settings.last_level)
        sizes = (*sizes, settings.last_level)
    SidTable(corpus.items["item_id"], codes, sizes, by_popularity).save(run.folder / "sid")
    with atomic_path(run.folder / "sid/quantizer") as folder:
        quantizer.save_pretrained(folder)
    metrics = {
        "items": len(codes),
        "semantic_ids": len(np.unique(codes, axis=0)),
        "reconstruction_error": reconstruction_error(vectors, quantizer.decode(learned)),
        "items_with_learned_codes_of_their_own": independent_coding_rate(learned),
    }
    usage = [np.bincount(codes[:, level], minlength=size).tolist() for level, size in enumerate(sizes)]
    write_json(run.folder / "sid/usage.json", {"level_sizes": list(sizes), "usage": usage, "metrics": metrics})


def train(run: Run, progress: Progress) -> None:
    """Train the generator on the log."""
    from training.sft import train_run

    train_run(run, progress)


def evaluate(run: Run, progress: Progress) -> None:
    """Compare the generator with the baselines on held-out searches."""
    from eval.recall import evaluate_run

    evaluate_run(run.folder, progress)


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
    path = run.settings.path
    return {} if path is None or not Path(path).exists() else {"source": stamps(Path(path))}


def _training_config(run: Run) -> dict[str, Any]:
    path = run.settings.sft
    return {} if path is None or not Path(path).exists() else {"sft": stamps(Path(path))}


STEPS = {
    step.name: step
    for step in (
        Step(
            "prepare",
            "read the log",
            prepare,
            ("source", "path", "on_error", "users", "seed"),
            (),
            ("corpus",),
            _source_files,
        ),
        Step("embed", "embed the catalogue", embed, ("encoder",), ("corpus",), ("embeddings",)),
        Step(
            "quantize",
            "make semantic IDs",
            quantize,
            ("behaviour", "level_sizes", "last_level", "split", "seed"),
            ("corpus", "embeddings"),
            ("sid",),
        ),
        Step(
            "train",
            "train the generator",
            train,
            ("split", "seed", "encoder"),
            ("corpus", "embeddings", "sid"),
            ("models/sft",),
            _training_config,
        ),
        Step(
            "evaluate",
            "compare with the baselines",
            evaluate,
            ("split", "seed", "encoder", "valid_requests", "test_requests"),
            ("corpus", "embeddings", "sid", "models/sft"),
            ("eval/recall.json",),
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
