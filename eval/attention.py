"""How a generator's encoder attends, and what its interest vector holds; beside another model, before and after.

    python -m eval.attention --run runs/demo --stage sft
    python -m eval.attention --run runs/demo --stage karma --against sft

Of the first validation searches of a fixed sample:

- sink mass: what the most read position gets of the others' attention, on average over them. The mean over heads and
  layers, after KARMA (https://arxiv.org/abs/2603.22779), where a collapsed model reads one position whatever it is;
- column entropy: of how all attention is spread over the positions, as a share of the most there can be. A small one
  looks like a barcode. In both a position's attention to itself is left out, and so is `[INT]`, which nobody reads;
- of models with an interest head, the effective rank of the vectors (exp of the entropy of the singular values of the
  centred ones, Roy and Vetterli 2007) and how well the title of what was bought can be read out of them
  (`eval.decodability`).

Writes `eval/attention.json`, and `eval/attention.svg`: the attention in one of the searches.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from eval.charts import HeatMap, heat_maps
from eval.decodability import decodability
from eval.metrics import Bootstrap
from onesearch.corpus import TRAIN, VALID, Corpus, Requests, make_split, sample_requests
from onesearch.errors import UserError
from onesearch.files import write_json, write_text
from onesearch.model.attention import attention_weights
from onesearch.model.context import Context
from onesearch.readers import load_reader
from onesearch.readers.generator import GeneratorReader
from onesearch.run import Run
from onesearch.sid import SidTable
from training.karma import item_tokens

log = logging.getLogger(__name__)

FITTED: Final = 4
"""The probe is fitted on so many times as many requests as it is measured on."""

TOGETHER: Final = 256
"""Requests that are read at once."""

NAME: Final = "recorded"
MEASURES: Final = ("sink_mass", "column_entropy")


@dataclass(frozen=True)
class Seen:
    """What a model made of B requests.

    Attributes:
        values: (B,) of each of `MEASURES`. interest: (B, D), or None without a head.
        example: (S, S) who attends to whom in the request that was asked for, over all layers and heads.
        parts: what its positions are, and how many.
    """

    values: dict[str, NDArray[np.float64]]
    interest: Tensor | None
    example: Tensor | None
    parts: list[tuple[str, int]]


def sink_mass(weight: Tensor, used: Tensor) -> Tensor:
    """(...) what the most read position gets, on average over the others.

    Args:
        weight: (..., S, S) attention of each position (row) to each (column). used: (..., S) bool.
    """
    read = _columns(weight, used)
    others = (used.sum(-1) - 1).clamp(min=1)
    return read.amax(-1) / others


def column_entropy(weight: Tensor, used: Tensor) -> Tensor:
    """(...) entropy of the share of each column in all attention, over the log of the number of columns; arguments as
    for `sink_mass`. 1 where all are read alike, 0 where one has everything."""
    read = _columns(weight, used)
    share = read / read.sum(-1, keepdim=True).clamp(min=1e-12)
    return torch.special.entr(share).sum(-1) / used.sum(-1).clamp(min=2).log()


def _columns(weight: Tensor, used: Tensor) -> Tensor:
    """(..., S) what each position gets of the others."""
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    itself = torch.eye(used.shape[-1], dtype=torch.bool, device=used.device)
    return weight.masked_fill(~both | itself, 0.0).sum(-2)


def effective_rank(vectors: Tensor) -> float:
    """How many directions the vectors (n, D) take up, by the entropy of the singular values of the centred ones."""
    size = torch.linalg.svdvals((vectors - vectors.mean(0)).double())
    return float(torch.special.entr(size / size.sum().clamp(min=1e-300)).sum().exp())


@contextmanager
def recording(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """The attention of each layer (B, heads, S, S), in the order in which the layers run."""
    found: list[Tensor] = []

    def recorded(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        weight = attention_weights(query, key, attention_mask, scaling)
        found.append(weight)
        return (weight @ value).transpose(1, 2), weight

    AttentionInterface.register(NAME, recorded)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config: Any = encoder.config
    usual = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield found
    finally:
        config._attn_implementation = usual


@torch.inference_mode()
def look(reader: GeneratorReader, requests: Requests, example: int | None = None) -> Seen:
    """Read the requests and keep what is measured of each; `example` is the one whose attention is kept whole."""
    values: dict[str, list[Tensor]] = {name: [] for name in MEASURES}
    interest, kept, parts = [], None, []
    for start in range(0, len(requests), TOGETHER):
        inputs, _ = reader.builder.inputs(requests.part(slice(start, start + TOGETHER)))
        with recording(reader.model.backbone.get_encoder()) as layers:
            context = reader.model.read(**send_to_device(inputs, reader.device))
        used = context.mask[:, 0, 0].cpu()
        weight = torch.stack(layers, 1).flatten(1, 2).cpu()  # (B, layers * heads, S, S)
        many = used.unsqueeze(1).expand(-1, weight.shape[1], -1)
        values["sink_mass"].append(sink_mass(weight, many).mean(1))
        values["column_entropy"].append(column_entropy(weight, many).mean(1))
        if context.interest is not None:
            interest.append(context.interest.cpu())
        if example is not None and start <= example < start + TOGETHER:
            row = example - start
            parts = _parts(inputs, context, row)
            size = sum(count for _, count in parts)
            kept = weight[row].mean(0)[:size, :size]
    joined = {name: torch.cat(parts_).double().numpy() for name, parts_ in values.items()}
    return Seen(joined, torch.cat(interest) if interest else None, kept, parts)


def _parts(inputs: Mapping[str, Any], context: Context, row: int) -> list[tuple[str, int]]:
    """What the positions of a request are, in their order."""
    past = int((inputs["slot_codes"][row, :, 0] >= 0).sum())
    words, read = int(inputs["query_mask"][row].sum()), int(context.mask[row].sum())
    known = [("purchases", past), ("query", read - past if "views" not in inputs else 1 + words)]
    known += [("views", read - past - 1 - words)] if "views" in inputs else []
    return [part for part in [*known, ("[INT]", int(context.interest is not None))] if part[1]]


def measure(
    readers: Mapping[str, GeneratorReader], run: Run, size: int
) -> tuple[dict[str, Any], list[tuple[str, Seen]]]:
    """The figures of every model over the same validation searches, and what they saw."""
    settings = run.settings
    corpus = next(iter(readers.values())).builder.corpus
    split = make_split(corpus, settings.split)
    requests = sample_requests(corpus, split, VALID, size, settings.seed)
    fitting = sample_requests(corpus, split, TRAIN, FITTED * size, settings.seed)
    if not len(requests):
        raise UserError("no validation searches", place=run.folder / "corpus", remedy="the log needs more events")
    history = requests.history_end - requests.history_start
    example = int(np.argsort(history, kind="stable")[len(history) // 2])
    draws = Bootstrap(requests.user, seed=settings.seed)
    report: dict[str, Any] = {"searches": len(requests), "models": {}}
    pictures: list[tuple[str, Seen]] = []
    for name, reader in readers.items():
        log.info("%s: attention of %s searches", name, f"{len(requests):,}")
        seen = look(reader, requests, example)
        pictures.append((name, seen))
        found: dict[str, Any] = {measure: draws.mean(values).as_dict() for measure, values in seen.values.items()}
        if seen.interest is not None:
            log.info("%s: what can be read out of its interest vector", name)
            tokenizer = reader.builder.tokenizer
            text = torch.from_numpy(item_tokens(tokenizer, corpus.items["title"].to_list()))
            told, right = text[torch.from_numpy(fitting.target)], text[torch.from_numpy(requests.target)]
            sizes = {"vocabulary": len(tokenizer), "end": tokenizer.begin, "seed": settings.seed}
            fitted = look(reader, fitting).interest
            assert fitted is not None
            found["effective_rank"] = effective_rank(seen.interest)
            found["width"] = seen.interest.shape[1]
            found["decoded"] = decodability((fitted, told), (seen.interest, right), **sizes).as_dict()
            nothing = torch.zeros_like(fitted), torch.zeros_like(seen.interest)
            found["decoded_from_nothing"] = decodability((nothing[0], told), (nothing[1], right), **sizes).as_dict()
        report["models"][name] = found
    return report, pictures


def load(run: Run, stage: str) -> GeneratorReader:
    """A generator of a run.

    Raises:
        UserError: there is none of this name, or it is of another kind.
    """
    folder = run.folder / "models" / stage
    if not (folder / "config.json").exists():
        raise UserError("no such model", place=folder, remedy="name a stage that was trained")
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    reader = load_reader(run, stage, corpus, table)
    if not isinstance(reader, GeneratorReader):
        raise UserError("not a model with an encoder", place=folder, remedy="name one that training/sft.py made")
    return reader


def compared(run: Run, stage: str, against: str | None) -> dict[str, tuple[Run, str]]:
    """Each model, as its run and stage, by the name that tables and pictures call it: its stage, or where two runs are
    compared its run's folder; and the folder above too, where both folders have one name.

    Args:
        against: a stage of the run, or the folder of a run with the same stage; it comes first.

    Raises:
        UserError: both are the same model.
    """
    if against is None:
        return {stage: (run, stage)}
    if not (Path(against) / "models").is_dir():
        models = {against: (run, against), stage: (run, stage)}
    else:
        both = [Run.open(against), run]
        places = [one.folder.resolve().parts for one in both]
        most = max(map(len, places))
        parts = next((n for n in range(1, most) if places[0][-n:] != places[1][-n:]), most)
        models = {"/".join(place[-parts:]): (one, stage) for place, one in zip(places, both, strict=True)}
    if len(models) < 2:
        raise UserError("a model beside itself", place="--against", value=against, remedy="name another stage or run")
    return models


def table(report: Mapping[str, Any]) -> str:
    """The figures as a table for people."""
    lines = [
        f"{report['searches']:,} validation searches",
        "",
        "| | sink mass | column entropy | effective rank | nats a token | Jaccard | nats from nothing |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in report["models"].items():
        cells = [f"{found[measure]['mean']:.3f}" for measure in MEASURES]
        if "decoded" in found:
            decoded, nothing = found["decoded"], found["decoded_from_nothing"]
            cells += [f"{found['effective_rank']:.1f} of {found['width']}", f"{decoded['nats']:.3f}"]
            cells += [f"{decoded['jaccard']:.3f}", f"{nothing['nats']:.3f}"]
        else:
            cells += ["", "", "", ""]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m eval.attention --run runs/demo`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run folder with a trained generator")
    parser.add_argument("--stage", default="sft", help="the model in models/STAGE (%(default)s)")
    parser.add_argument("--against", metavar="STAGE", help="another model, shown first: a stage of the run, or a run")
    parser.add_argument("--requests", type=int, default=2000, help="validation searches (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the results (eval of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    try:
        if options.requests < 2:
            raise UserError("too few searches", place="--requests", value=options.requests, remedy="use 2 or more")
        run = Run.open(options.run)
        models = compared(run, options.stage, options.against)
        readers = {name: load(*model) for name, model in models.items()}
        report, pictures = measure(readers, run, options.requests)
    except UserError as error:
        sys.stderr.write(f"onesearch: {' '.join(str(error).split())}\n")
        return 2
    folder = options.output or run.folder / "eval"
    write_json(folder / "attention.json", report)
    maps = [HeatMap(name, seen.example.tolist(), seen.parts) for name, seen in pictures if seen.example is not None]
    write_text(folder / "attention.svg", heat_maps("Who reads whom, in one search", maps))
    sys.stdout.write(json.dumps(report) + "\n" if options.json else table(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
