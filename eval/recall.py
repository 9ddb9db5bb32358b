"""Offline recall: every system answers the same held-out searches, every sellable item is a candidate.

    python -m eval.recall --run runs/demo

writes `eval/recall.json` (means, intervals, paired differences, slices), `eval/per_query.parquet` (a value per system,
search and metric) and `eval/trec/` (run files and qrels) into the run folder. For a log without queries the baselines
are popularity and SASRec, and rankings are also reported without what the user has seen.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eval.background import begin
from eval.baselines import System
from eval.baselines.fit import BASELINES, HISTORY_BASELINES, fit_baselines, fit_history_baselines
from eval.baselines.sasrec import SASRec
from eval.generator import ALIGNED, NAMES, GeneratorSystem, Unmoved
from eval.metrics import METRICS, Bootstrap, per_query
from eval.trec import write_qrels, write_run
from eval.unseen import without_seen
from onesearch.context.sequence import ItemContent
from onesearch.corpus import TEST, TRAIN, VALID, Corpus, Requests, make_split, sample_requests
from onesearch.corpus.schema import QUERY_KINDS, QUERY_NOISE
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import atomic_path, checksum, write_json
from onesearch.retriever import Retriever
from onesearch.run import Run
from onesearch.semantic_ids import item_vectors

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]

OWN: Final = (*NAMES.values(), ALIGNED)
DEPTH: Final = 50
"""Items that each system returns."""

HEAD: Final = 0.8
"""Tail items are those outside the most bought ones that make up this share of the training purchases."""

MAIN: Final = "mrr@10"
"""Names the strongest baseline."""

HISTORY_METRICS: Final = ("recall@1", "recall@5", "recall@10", "recall@50", "mrr@10", "ndcg@5", "ndcg@10")
SHOWN: Final = ("recall@5", "ndcg@5", "recall@10", "ndcg@10")
"""Of a log without queries, as papers on sequential recommendation have them."""

UNSEEN_DEPTH: Final = 10
CONTENT: Final = 192
"""Principal directions of the item vectors that SASRec is given."""

SLICE_METRICS: Final = ("mrr@10", "recall@10", "ndcg@10")


@dataclass(frozen=True)
class Evaluation:
    """What came out: per system (Q, K) items and scores, per system and metric (Q,) values, and the report for JSON."""

    items: dict[str, NDArray[np.int32]]
    scores: dict[str, NDArray[np.float32]]
    values: dict[str, dict[str, NDArray[np.float64]]]
    report: dict[str, Any]


def evaluate_run(
    folder: Path,
    progress: Progress = lambda done, total: None,
    stage: str = "sft",
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Fit the baselines, let every system answer the run's test searches, and write the results into the run folder:
    to `eval`, or to `eval/STAGE` for the model of another stage than sft.

    Settings are chosen on validation searches; the test searches are answered once.

    Args:
        stage: which model of the run.
        without: baselines to leave out, for a log without queries.
    """
    run = Run.open(folder)
    settings = run.settings
    retriever = Retriever.load(folder, stage)
    corpus = retriever.corpus
    split = make_split(corpus, settings.split)
    valid = sample_requests(corpus, split, VALID, settings.valid_requests, settings.seed)
    test = sample_requests(corpus, split, TEST, settings.test_requests, settings.seed)
    if len(valid) == 0 or len(test) == 0:
        raise UserError("no held-out searches", place=folder / "corpus", remedy="the log needs more events")
    own: list[Any] = [*GeneratorSystem.all(retriever)]
    if stage == "sft" and settings.reinforce and (run.folder / "models/grpo/config.json").exists():
        own.append(aligned_system(folder, own[0]))
    begun = begin(own, test, DEPTH)
    count = BASELINES if corpus.queries else HISTORY_BASELINES
    steps, fitted = 2 * count + len(own), lambda done: progress(done, steps)
    if corpus.queries:
        encoder = load_text_encoder(settings.encoder)
        baselines = fit_baselines(corpus, split, valid, encoder, seed=settings.seed, fitted=fitted)
    else:
        content = ItemContent.fit(item_vectors(run, corpus, split), CONTENT).vectors
        baselines = fit_history_baselines(
            corpus, split, valid, content, without=without, seed=settings.seed, fitted=fitted
        )
    evaluation = evaluate(
        [*baselines, *begun], corpus, split, test, seed=settings.seed, ranked=lambda done: progress(count + done, steps)
    )
    evaluation.report["exact_share"] = own[0].exact_share
    write_evaluation(folder / "eval" if stage == "sft" else folder / "eval" / stage, evaluation, corpus, test)
    return evaluation.report


def aligned_system(folder: Path, start: GeneratorSystem) -> System:
    """The aligned generator; if no step of its alignment was kept, searching again would find the same again."""
    weights = [checksum(folder / "models" / stage / "model.safetensors") for stage in ("sft", "grpo")]
    if weights[0] == weights[1]:
        return Unmoved(start)
    return GeneratorSystem(Retriever.load(folder, "grpo"), name=ALIGNED)


def evaluate(
    systems: Sequence[System],
    corpus: Corpus,
    split: NDArray[np.int8],
    requests: Requests,
    *,
    k: int = DEPTH,
    seed: int = 0,
    ranked: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Let every system answer the requests with k items.

    The report holds means with 95 % intervals, paired differences to the strongest baseline, and means per slice.

    Args:
        ranked: called with the number of systems that have answered.
    """
    items: dict[str, NDArray[np.int32]] = {}
    scores: dict[str, NDArray[np.float32]] = {}
    for number, system in enumerate(systems, 1):
        began = time.perf_counter()
        items[system.name], scores[system.name] = system.rank(requests, k)
        logger.info("%s answered %d searches in %.1f s", system.name, len(requests), time.perf_counter() - began)
        ranked(number)
    metrics = METRICS if corpus.queries else HISTORY_METRICS
    values = {name: per_query(found, requests.target, metrics) for name, found in items.items()}
    draws = Bootstrap(requests.user, seed=seed)
    baselines = {name: one[MAIN].mean() for name, one in values.items() if name not in OWN}
    strongest = max(baselines, key=lambda name: baselines[name])
    report: dict[str, Any] = {
        "systems": {
            name: {metric: draws.mean(found).as_dict() for metric, found in one.items()} for name, one in values.items()
        },
        "queries": len(requests),
        "strongest_baseline": strongest,
        "differences": {
            name: {
                metric: draws.difference(found, values[strongest][metric]).as_dict() for metric, found in one.items()
            }
            for name, one in values.items()
            if name != strongest
        },
        "alignment": {
            metric: draws.difference(found, values["generator"][metric]).as_dict()
            for metric, found in values.get(ALIGNED, {}).items()
        },
        "slices": {
            name: {value: _means(values, inside) for value, inside in parts.items()}
            for name, parts in slices_of(corpus, split, requests).items()
        },
        "tuned": {system.name: {name: _plain(one) for name, one in system.tuned.items()} for system in systems},
    }
    if not corpus.queries:
        report["shown"] = list(SHOWN)
        report["unseen"] = {}
        for system in systems:
            kept = without_seen(system, corpus, requests, items[system.name], UNSEEN_DEPTH)
            found = per_query(kept, requests.target, SHOWN)
            report["unseen"][system.name] = {metric: draws.mean(one).as_dict() for metric, one in found.items()}
    return Evaluation(items, scores, values, report)


def _means(values: Mapping[str, Mapping[str, NDArray[np.float64]]], inside: NDArray[np.bool_]) -> dict[str, Any]:
    systems = {
        name: {metric: float(one[metric][inside].mean()) for metric in SLICE_METRICS} for name, one in values.items()
    }
    return {"queries": int(inside.sum()), "systems": systems}


def _plain(value: Any) -> Any:
    """JSON has no infinity."""
    return "infinite" if value == math.inf else value


def slices_of(corpus: Corpus, split: NDArray[np.int8], requests: Requests) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Parts of the requests, per slice and value a (Q,) mask: query kind, spelling, repeat or first purchase, head or
    tail item, and known or new user. A slice of one value only is left out."""
    trained = np.bincount(corpus.user[split == TRAIN], minlength=len(corpus.users)) > 0
    parts = {
        "query": np.array([*QUERY_KINDS, ""])[corpus.query_kind[requests.event]],
        "spelling": np.array([*QUERY_NOISE, ""])[corpus.query_noise[requests.event]],
        "purchase": np.where(bought_before(corpus, requests), "repeat", "first"),
        "item": np.where(tail_items(corpus, split)[requests.target], "tail", "head"),
        "user": np.where(trained[requests.user], "known", "new"),
    }
    return {
        name: {str(value): part == value for value in np.unique(part)}
        for name, part in parts.items()
        if len(np.unique(part)) > 1
    }


def tail_items(corpus: Corpus, split: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(N,) whether an item is outside the most bought ones that make up HEAD of the training purchases."""
    counts = np.bincount(corpus.item[split == TRAIN], minlength=len(corpus.items))
    order = np.argsort(-counts, kind="stable")
    tail = np.zeros(len(counts), bool)
    tail[order] = np.cumsum(counts[order]) - counts[order] >= HEAD * counts.sum()
    return tail


def bought_before(corpus: Corpus, requests: Requests) -> NDArray[np.bool_]:
    """(Q,) whether the item that followed is in the user's history."""
    length = requests.history_end - requests.history_start
    row = np.repeat(np.arange(len(requests)), length)
    event = np.arange(length.sum()) + np.repeat(requests.history_start - np.cumsum(length) + length, length)
    same = corpus.item[event] == requests.target[row]
    return np.bincount(row[same], minlength=len(requests)) > 0


def write_evaluation(folder: Path, evaluation: Evaluation, corpus: Corpus, requests: Requests) -> None:
    """Write `recall.json`, `per_query.parquet`, and run files and qrels in `trec/`."""
    names = corpus.items["item_id"].to_list()
    queries = [f"q{event}" for event in requests.event]
    for system, items in evaluation.items.items():
        tag = system.replace(" ", "-")
        write_run(folder / f"trec/{tag}.run", tag, queries, items, evaluation.scores[system], names)
    write_qrels(folder / "trec/qrels.txt", queries, requests.target, names)
    frames = [
        pl.DataFrame({"system": [name] * len(requests), "event": requests.event, "query": requests.query, **one})
        for name, one in evaluation.values.items()
    ]
    with atomic_path(folder / "per_query.parquet") as temporary:
        pl.concat(frames).write_parquet(temporary)
    write_json(folder / "recall.json", evaluation.report)


def _spelt(values: Mapping[str, Mapping[str, float]]) -> str:
    return "  ".join(f"{metric} {one['mean']:.4f}" for metric, one in values.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.recall --run runs/demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a trained generator")
    parser.add_argument("--stage", default="sft", help="which of its models")
    parser.add_argument(
        "--without", nargs="*", default=[], choices=[SASRec.name], help="baselines that need not be trained again"
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    try:
        results = evaluate_run(options.run, stage=options.stage, without=options.without)
    except UserError as error:
        sys.stderr.write(f"onesearch: {error}\n")
        return 2
    for name, one in results["systems"].items():
        sys.stdout.write(f"{name:<20} {_spelt(one)}\n")
    for name, one in results.get("unseen", {}).items():
        sys.stdout.write(f"{name + ', unseen':<20} {_spelt(one)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
