"""Offline recall: every system answers the same held-out searches, every sellable item is a candidate.

    python -m eval.recall --run runs/demo

writes `eval/recall.json` (means, intervals, paired differences, slices), `eval/per_query.parquet` (a value per system,
search and metric) and `eval/trec/` (run files and qrels) into the run folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eval.baselines import System
from eval.baselines.fit import BASELINES, fit_baselines
from eval.generator import GeneratorSystem
from eval.metrics import METRICS, Bootstrap, per_query
from eval.trec import write_qrels, write_run
from onesearch.corpus import TEST, TRAIN, VALID, Corpus, Requests, make_split, sample_requests
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import atomic_path, write_json
from onesearch.retriever import Retriever
from onesearch.run import Run

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]

OWN: Final = "generator"
DEPTH: Final = 50
"""Items that each system returns."""

HEAD: Final = 0.8
"""Tail items are those outside the most bought ones that make up this share of the training purchases."""

MAIN: Final = "mrr@10"
"""Names the strongest baseline."""

SLICE_METRICS: Final = ("mrr@10", "recall@10", "ndcg@10")
Values = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""Per system and metric (Q,) values."""


def evaluate_run(folder: Path, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Fit the baselines, let every system answer the run's test searches, and write the results into the run folder.

    Settings are chosen on validation searches; the test searches are answered once.
    """
    run = Run.open(folder)
    settings = run.settings
    retriever = Retriever.load(folder)
    corpus = retriever.corpus
    split = make_split(corpus, settings.split)
    valid = sample_requests(corpus, split, VALID, settings.valid_requests, settings.seed)
    test = sample_requests(corpus, split, TEST, settings.test_requests, settings.seed)
    if len(valid) == 0 or len(test) == 0:
        raise UserError("no held-out searches", place=folder / "corpus", remedy="the log needs more events")
    steps = 2 * BASELINES + 1
    encoder = load_text_encoder(settings.encoder)
    baselines = fit_baselines(
        corpus, split, valid, encoder, seed=settings.seed, fitted=lambda count: progress(count, steps)
    )
    systems: list[System] = [*baselines, GeneratorSystem(retriever)]
    ranked: dict[str, NDArray[np.int32]] = {}
    target = folder / "eval"
    names = corpus.items["item_id"].to_list()
    queries = [f"q{event}" for event in test.event]
    for number, system in enumerate(systems, 1):
        began = time.perf_counter()
        ranked[system.name], scores = system.rank(test, DEPTH)
        logger.info("%s answered %d searches in %.1f s", system.name, len(test), time.perf_counter() - began)
        tag = system.name.replace(" ", "-")
        write_run(target / f"trec/{tag}.run", tag, queries, ranked[system.name], scores, names)
        progress(BASELINES + number, steps)
    write_qrels(target / "trec/qrels", queries, test.target, names)
    values = {name: per_query(items, test.target) for name, items in ranked.items()}
    write_per_query(target / "per_query.parquet", values, test)
    results = summarize(values, test, slices(corpus, split, test), seed=settings.seed)
    results["tuned"] = {system.name: system.tuned for system in systems}
    write_json(target / "recall.json", results)
    return results


def summarize(
    values: Values, requests: Requests, sliced: Mapping[str, NDArray[np.str_]], *, seed: int = 0
) -> dict[str, Any]:
    """Means with 95 % intervals, paired differences to the strongest baseline, and means per slice, ready for JSON.

    Args:
        sliced: per slice (Q,) names of the part each search belongs to; "" belongs to none.
    """
    draws = Bootstrap(requests.user, seed=seed)
    baselines = {name: one[MAIN].mean() for name, one in values.items() if name != OWN}
    strongest = max(baselines, key=lambda name: baselines[name])
    differences = {
        name: {metric: draws.difference(found, values[strongest][metric]).as_dict() for metric, found in one.items()}
        for name, one in values.items()
        if name != strongest
    }
    return {
        "systems": {
            name: {metric: draws.mean(found).as_dict() for metric, found in one.items()} for name, one in values.items()
        },
        "queries": len(requests),
        "strongest_baseline": strongest,
        "differences": differences,
        "slices": {
            name: {str(part): _part(values, parts == part) for part in np.unique(parts[parts != ""])}
            for name, parts in sliced.items()
            if (parts != "").any()
        },
    }


def _part(values: Values, inside: NDArray[np.bool_]) -> dict[str, Any]:
    systems = {
        name: {metric: float(one[metric][inside].mean()) for metric in SLICE_METRICS} for name, one in values.items()
    }
    return {"queries": int(inside.sum()), "systems": systems}


def slices(corpus: Corpus, split: NDArray[np.int8], requests: Requests) -> dict[str, NDArray[np.str_]]:
    """Per slice (Q,) which part each search belongs to: query kind, spelling, repeat or first purchase, tail items, and
    users whom the training never saw."""
    extra = corpus.extra[requests.event.tolist()]
    known = split == TRAIN
    repeat = bought_before(corpus, requests)
    counts = np.bincount(corpus.item[known], minlength=len(corpus.items))
    order = np.argsort(-counts, kind="stable")
    head = np.zeros(len(counts), bool)
    head[order[: int(np.searchsorted(np.cumsum(counts[order]), HEAD * counts.sum())) + 1]] = True
    trained = np.bincount(corpus.user[known], minlength=len(corpus.users)) > 0
    found = {
        "query": extra["query_kind"].fill_null("").to_numpy().astype(str),
        "spelling": extra["query_noise"].fill_null("").to_numpy().astype(str),
        "purchase": np.where(repeat, "repeat", "first"),
        "item": np.where(head[requests.target], "head", "tail"),
    }
    if not trained[requests.user].all():
        found["user"] = np.where(trained[requests.user], "known", "new")
    return found


def bought_before(corpus: Corpus, requests: Requests) -> NDArray[np.bool_]:
    """(Q,) whether the item that followed is in the user's history."""
    length = requests.history_end - requests.history_start
    row = np.repeat(np.arange(len(requests)), length)
    event = np.arange(length.sum()) + np.repeat(requests.history_start - np.cumsum(length) + length, length)
    same = corpus.item[event] == requests.target[row]
    return np.bincount(row[same], minlength=len(requests)) > 0


def write_per_query(path: Path, values: Values, requests: Requests) -> None:
    """One row per system and search: event, query, and every metric's value."""
    frames = [
        pl.DataFrame({"system": [name] * len(requests), "event": requests.event, "query": requests.query, **one})
        for name, one in values.items()
    ]
    with atomic_path(path) as temporary:
        pl.concat(frames).write_parquet(temporary)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.recall --run runs/demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a trained generator")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        results = evaluate_run(parser.parse_args(arguments).run)
    except UserError as error:
        sys.stderr.write(f"onesearch: {error}\n")
        return 2
    for name, one in results["systems"].items():
        shown = "  ".join(f"{metric} {one[metric]['mean']:.4f}" for metric in METRICS)
        sys.stdout.write(f"{name:<12} {shown}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
