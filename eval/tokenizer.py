"""Which tokenizer to choose: every way to make semantic IDs, on one catalogue, side by side.

    python -m eval.tokenizer --run runs/demo --config configs/tokenizers/demo.yaml
    python -m eval.tokenizer --corpus runs/demo/corpus --encoder wordllama --output runs/tokenizers
    python -m eval.tokenizer --run runs/demo --generator RQ-KMeans KHQE --steps 250 --seeds 7 8 9

A run brings corpus and embeddings; of a corpus alone the texts are embedded first, into a run in the output folder. For
each tokenizer of the YAML (a method by name, a YAML of `configs/quantizers`, or options written there): usage of codes
and of prefixes (CUR), independent coding rate (ICR), collisions, entropy, error of reconstruction, recall of held-out
neighbours by shared prefixes (`eval/prefix_recall.py`) beside that of the vectors themselves, and seconds. CUR and ICR
are those of OneSearch (https://arxiv.org/abs/2509.03236). All of it is about the learned codes; the level that makes
semantic IDs unique is left out, as it says nothing about an item. `--generator` trains a generator for each of the
named tokenizers and each of `--seeds`, with one budget of steps, and lets it answer the validation searches (the test
searches stay unseen); differences are to the first tokenizer named.

Writes `tokenizer.json`, `tokenizer.md` and `tokenizer.html`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from eval.metrics import Bootstrap
from eval.prefix_recall import Relation, held_out_relations, prefix_recall, vector_recall
from eval.tokenizer_report import markdown, render
from eval.trained import Answers, answers, file_name, sharing, train_here
from onesearch.corpus import Corpus, item_texts, make_split
from onesearch.embed import embed_catalogue, load_text_encoder
from onesearch.errors import UserError
from onesearch.files import read_json, read_yaml, write_json, write_text
from onesearch.methods import Method, find_method
from onesearch.run import Run
from onesearch.semantic_ids import Fitted, fit_method, make_semantic_ids, method_inputs
from onesearch.settings import Settings
from quantizers.metrics import (
    codebook_usage,
    collisions,
    independent_coding_rate,
    level_entropy,
    prefix_usage,
    reconstruction_error,
)

log = logging.getLogger(__name__)

CONFIG: Final = Path("configs/tokenizers/demo.yaml")
CUTS: Final = (10, 100)


@dataclass(frozen=True)
class Tokenizer:
    """One row of the table: a name, and the settings of the run with its method in them."""

    name: str
    settings: Settings
    method: Method

    @property
    def vectors(self) -> tuple[bool, bool, float]:
        """What decides which vectors are quantized."""
        return self.method.align, self.method.keywords, self.method.behaviour


def read_tokenizers(path: Path, settings: Settings, folder: Path) -> list[Tokenizer]:
    """The tokenizers of a YAML, all of them checked; options written in it become files in `folder`.

    Raises:
        UserError: an entry is no method, or says something that the method does not know.
    """
    found = []
    for name, value in read_yaml(path).items():
        if not isinstance(value, str | Mapping):
            remedy = "give a method's name, a YAML file, or options with `method` among them"
            raise UserError("no tokenizer", place=f"{path}: {name}", value=value, remedy=remedy)
        given = value
        if isinstance(value, Mapping):
            file = folder / f"{file_name(str(name))}.yaml"
            write_text(file, yaml.safe_dump(dict(value), sort_keys=False))
            given = str(file)
        chosen = replace(settings, method=str(given))
        try:
            found.append(Tokenizer(str(name), chosen, find_method(chosen)))
        except UserError as error:
            raise UserError(error.problem, place=f"{path}: {name}", value=error.value, remedy=error.remedy) from error
    if len({file_name(one.name) for one in found}) < len(found):
        raise UserError("two tokenizers of one name", place=path, remedy="tell them apart by letters or digits")
    return found


def compare(
    run: Run, tokenizers: Sequence[Tokenizer], keep: Callable[[Mapping[str, Any]], None] = lambda results: None
) -> dict[str, Any]:
    """Fit every tokenizer and measure it; one that needs an alignment the run does not have is left out, and named.

    Args:
        keep: called with the results so far after every tokenizer.
    """
    corpus = Corpus.load(run.folder / "corpus")
    split = make_split(corpus, run.settings.split)
    relations = held_out_relations(corpus, split)
    draws = [Bootstrap(relation.drawn, seed=run.settings.seed) for relation in relations]
    rows: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    results = {
        "source": corpus.info["source"],
        "items": len(corpus.items),
        "relations": {
            one.name: {"groups": len(np.unique(one.group)), "rows": len(one), "drawn": len(np.unique(one.drawn))}
            for one in relations
        },
        "cuts": list(CUTS),
        "tokenizers": rows,
        "left_out": left_out,
    }
    of_vectors: dict[tuple[bool, bool, float], Any] = {}
    for tokenizer in tokenizers:
        if tokenizer.method.align and not (run.folder / "models/align/config.json").exists():
            left_out[tokenizer.name] = "this run has no alignment; training/align.py makes it"
            continue
        began = time.perf_counter()
        fitted = fit_method(Run(run.folder, tokenizer.settings), tokenizer.method, corpus, split)
        made = time.perf_counter() - began
        row = measure(fitted)
        row["fit_seconds"] = max(made - row["encode_seconds"], 0.0)
        row["recall"] = recalls(fitted.codes, relations, draws)
        if tokenizer.vectors not in of_vectors:
            found = vector_recall(fitted.vectors, relations, CUTS)
            of_vectors[tokenizer.vectors] = _estimates(found, relations, draws)
        row["recall_of_vectors"] = of_vectors[tokenizer.vectors]
        row["method"] = asdict(tokenizer.method)
        rows[tokenizer.name] = row
        log.info("%s: %.1f s", tokenizer.name, time.perf_counter() - began)
        keep(results)
    return results


def measure(fitted: Fitted) -> dict[str, Any]:
    """How the codes use their space and tell items apart, what they lose, and the seconds to encode all items.

    `texts` are the distinct vectors: two items of one text cannot have different codes.
    """
    codes, sizes = fitted.codes, tuple(fitted.quantizer.level_sizes)
    began = time.perf_counter()
    fitted.quantizer.encode(fitted.vectors)
    seconds = time.perf_counter() - began
    first = np.unique(fitted.vectors, axis=0, return_index=True)[1]
    return {
        "level_sizes": list(sizes),
        "bits": float(np.log2(np.array(sizes, float)).sum()),
        "usage": [np.bincount(codes[:, level], minlength=size).tolist() for level, size in enumerate(sizes)],
        "cur_of_levels": codebook_usage(codes, sizes).tolist(),
        "cur_of_prefixes": prefix_usage(codes, sizes).tolist(),
        "icr": independent_coding_rate(codes),
        "texts": len(first),
        "icr_of_texts": independent_coding_rate(codes[first]),
        "collisions": asdict(collisions(codes)),
        "entropy": level_entropy(codes, sizes).tolist(),
        "reconstruction_error": reconstruction_error(fitted.vectors, fitted.quantizer.decode(codes)),
        "encode_seconds": seconds,
    }


def recalls(codes: NDArray[np.integer], relations: Sequence[Relation], draws: Sequence[Bootstrap]) -> dict[str, Any]:
    """{relation: {cut: mean with its interval}} of (N, L) codes."""
    return _estimates([prefix_recall(codes, relation, CUTS) for relation in relations], relations, draws)


def _estimates(
    found: Sequence[NDArray[np.float64]], relations: Sequence[Relation], draws: Sequence[Bootstrap]
) -> dict[str, Any]:
    return {
        relation.name: {str(cut): drawn.mean(values[:, column]).as_dict() for column, cut in enumerate(CUTS)}
        for relation, values, drawn in zip(relations, found, draws, strict=True)
    }


def generate(run: Run, tokenizer: Tokenizer, steps: int, seeds: Sequence[int], folder: Path) -> Answers:
    """Generators over the tokenizer's semantic IDs, one of each seed, trained for so many steps, on the validation
    searches.

    Each has a run of its own in `folder`, which shares corpus and embeddings; what is done there already is not done
    again. The level that makes semantic IDs unique is part of them here, as the method says.
    """
    trained = []
    for seed in seeds:
        own = sharing(
            run, folder / f"{file_name(tokenizer.name)}-seed-{seed}", ("corpus", "embeddings", "models/align"),
            tokenizer.settings,
        )  # fmt: skip
        with own.lock():
            own.step(
                "quantize",
                partial(make_semantic_ids, own),
                settings=("split", "seed", "encoder"),
                reads=("corpus", "embeddings"),
                writes=("sid",),
                inputs=method_inputs(own),
            )
        train_here(own, {"max_steps": steps, "warmup_steps": min(50, steps // 5), "seed": seed}, run.settings.sft)
        trained.append(own)
    return answers(trained)


def run_of_corpus(corpus: Path, encoder: str, folder: Path) -> Run:
    """A run over a corpus that is somewhere else, its texts embedded; the split by time, if the corpus has times."""
    split = "time" if Corpus.load(corpus).has_clock else "leave-one-out"
    run = Run.create(folder, Settings.of({"encoder": encoder, "split": split}))
    if not (folder / "corpus").exists():
        (folder / "corpus").symlink_to(corpus.resolve(), target_is_directory=True)
    if (folder / "corpus").resolve() != corpus.resolve():
        raise UserError("a run of another corpus", place=folder, remedy="choose another --output")
    with run.lock():
        embed_catalogue(item_texts(Corpus.load(folder / "corpus")), load_text_encoder(encoder), folder / "embeddings")
    return run


def write(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `tokenizer.json`, `tokenizer.md` and `tokenizer.html`."""
    write_json(folder / "tokenizer.json", results)
    write_text(folder / "tokenizer.md", markdown(results))
    write_text(folder / "tokenizer.html", render(results))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.tokenizer --run runs/demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", type=Path, help="a run folder with a corpus and embeddings (runs/demo)")
    what.add_argument("--corpus", type=Path, help="a corpus folder alone")
    parser.add_argument("--encoder", default=Settings.encoder, help="of the texts, with --corpus (%(default)s)")
    parser.add_argument("--config", type=Path, default=CONFIG, help="what is compared (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the results (eval/tokenizer of the run)")
    parser.add_argument("--generator", nargs="+", default=[], metavar="NAME", help="train one for these tokenizers")
    parser.add_argument("--steps", type=int, default=250, help="of training, with --generator (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[7], help="of trainings, with --generator (7)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        results = _compare(parser.parse_args(arguments))
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    sys.stdout.write(json.dumps(results) + "\n" if results.pop("as_json") else markdown(results))
    return 0


def _compare(options: argparse.Namespace) -> dict[str, Any]:
    if options.corpus is not None and options.output is None:
        raise UserError("--corpus needs --output", place="command line", remedy="name a folder for the results")
    if options.steps < 1:
        raise UserError("at least one step", place="--steps", value=options.steps)
    if options.corpus is None:
        run = Run.open(options.run or Path("runs/demo"))
        output = options.output or run.folder / "eval/tokenizer"
    else:
        output = options.output
        run = run_of_corpus(options.corpus, options.encoder, output / "run")
    tokenizers = {one.name: one for one in read_tokenizers(options.config, run.settings, output / "methods")}
    for name in options.generator:
        if name not in tokenizers:
            raise UserError(
                "no such tokenizer", place="--generator", value=name, remedy=f"known: {', '.join(tokenizers)}"
            )
    path = output / "tokenizer.json"
    before = read_json(path)["tokenizers"] if path.exists() else {}

    def keep(found: Mapping[str, Any]) -> None:
        for name, row in found["tokenizers"].items():  # a generator took minutes: kept while its codes are the same
            kept = before.get(name, {})
            if "generator" in kept and kept["usage"] == row["usage"]:
                row["generator"] = kept["generator"]
        write(output, found)

    results = compare(run, list(tokenizers.values()), keep)
    keep(results)
    first: Answers | None = None
    for name in options.generator:
        found = generate(run, tokenizers[name], options.steps, options.seeds, output / "runs")
        first = found if first is None else first
        about = {"steps": options.steps, "seeds": options.seeds, "against": options.generator[0]}
        results["tokenizers"][name]["generator"] = about | found.summary(first, run.settings.seed)
        write(output, results)
    return {**results, "as_json": options.json}


if __name__ == "__main__":
    raise SystemExit(main())
