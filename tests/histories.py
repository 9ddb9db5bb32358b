"""A made-up log without queries and clock, and small random models of histories."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from catalogues import random_codes
from numpy.typing import NDArray
from transformers import GPT2Config, LlamaConfig

from onesearch.model.item_tree import ItemTree
from onesearch.model.seen import once
from onesearch.model.sequence import SequenceConfig, SequenceGenerator
from onesearch.prefix import PrefixIndex
from onesearch.search.sequence_scorer import SequenceKeys, SequenceScorer

TINY = {
    "width": 16,
    "layers": 1,
    "heads": 2,
    "feed_forward": 16,
    "positions": 8,
    "content_width": 8,
    "dropout": 0.0,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 12,
    "warmup_steps": 5,
    "learning_rate": 1.0e-2,
    "logging_steps": 2,
}
"""Options of a training that takes a few seconds."""

KINDS = ("soap", "brush", "cream", "powder", "scent", "towel")
COLOURS = ("red", "green", "blue", "white")


def write_histories(folder: Path, users: int = 60, length: int = 7, seed: int = 0) -> Path:
    """Everybody goes through the catalogue in steps of one, from anywhere; one item in ten is any other. One item has
    no title."""
    rng = np.random.default_rng(seed)
    titles = [f"{colour} {kind}" for kind in KINDS for colour in COLOURS]
    titles[5] = ""
    items = [{"item_id": f"i{number:02}", "title": title} for number, title in enumerate(titles)]
    events = []
    for user in range(users):
        at = int(rng.integers(len(items)))
        for position in range(length + user % 4):
            events.append({"user_id": f"u{user:03}", "item_id": f"i{at:02}", "event": "purchase", "position": position})
            at = (at + 1) % len(items) if rng.random() < 0.9 else int(rng.integers(len(items)))
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in (("items", items), ("events", events)):
        (folder / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Case:
    """A random model, its catalogue of N items (some share a semantic ID), and three histories of unequal length."""

    model: SequenceGenerator
    scorer: SequenceScorer
    codes: NDArray[np.int32]
    order: NDArray[np.int32]


def backbone(family: str, positions: int) -> Any:
    if family == "gpt2":
        return GPT2Config(n_embd=16, n_layer=1, n_head=2, n_inner=16, n_positions=positions + 1, vocab_size=1)
    return LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=1)


def made(seed: int, items: int = 30, family: str = "gpt2", normalise: Any = "children", **options: Any) -> Case:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sizes = (4, 5, 3)
    codes = random_codes(rng, items, sizes, unique=options.pop("unique", False))
    order = rng.permutation(len(codes)).astype(np.int32)
    content = torch.from_numpy(rng.standard_normal((len(codes), 6)).astype(np.float32))
    config = SequenceConfig(
        backbone=backbone(family, 6),
        level_sizes=list(sizes),
        positions=6,
        content=6,
        normalise=normalise,
        temperature=0.3,
        **options,
    )
    model = SequenceGenerator(config)
    for parameter in model.parameters():  # far from the beginning, where all is much the same
        torch.nn.init.normal_(parameter, std=0.5)
    model = model.bind(ItemTree.build(PrefixIndex.build(codes, order), torch.from_numpy(codes), content)).eval()
    keys = SequenceKeys.of(model)
    histories = torch.tensor([[-1, 0, 1, 2], [-1, 3, -2, -2], [-1, -2, -2, -2]]).clamp(max=len(codes) - 1)
    with torch.inference_mode():
        states = model.read(histories, keys.items)[torch.arange(3), torch.tensor([3, 1, 0])]
    return Case(model, SequenceScorer(model, keys, states, once(histories)), codes, order)


@torch.inference_mode()
def log_prob(case: Case) -> torch.Tensor:
    """(B, N) of every item, code by code, in plain Python."""
    model, index = case.model, case.scorer.index
    total = torch.zeros(case.scorer.batch, len(case.codes))
    codes = torch.from_numpy(case.codes).long()
    for request in range(case.scorer.batch):
        state = case.scorer.states[request]
        for item in range(len(codes)):
            prefix = None
            for depth in range(index.levels):
                asked = model.decoder[depth](state, prefix)
                if model.config.normalise == "level":
                    choices = range(model.config.level_sizes[depth])
                    vectors = {c: model.codes[depth].weight[c] for c in choices}
                else:
                    same = (codes[:, :depth] == codes[item, :depth]).all(1)
                    vectors = {int(c): node_vector(case, codes[item, :depth], int(c)) for c in codes[same, depth]}
                logits = {
                    c: float(torch.nn.functional.normalize(vector, dim=0) @ asked) / model.config.temperature
                    for c, vector in vectors.items()
                }
                if model.config.normalise == "children" and depth > 0:
                    before = codes[item, :depth].tolist()
                    logits = {c: logit + bonus(case, request, depth, [*before, c]) for c, logit in logits.items()}
                own = int(codes[item, depth])
                total[request, item] += logits[own] - float(torch.tensor(list(logits.values())).logsumexp(0))
                prefix = node_vector(case, codes[item, :depth], own)
    return total


def bonus(case: Case, request: int, depth: int, path: list[int]) -> float:
    """Of a prefix of whose n items k were seen: the mean of e^b for these and 1 for the others, as a logarithm."""
    below = np.flatnonzero((case.codes[:, : len(path)] == path).all(1))
    factor = math.exp(float(case.model.repeat[depth]) / case.model.config.temperature)
    seen = set(case.scorer.seen[request].tolist())
    return math.log(sum(factor if int(item) in seen else 1.0 for item in below) / len(below))


def node_vector(case: Case, prefix: torch.Tensor, code: int) -> torch.Tensor:
    """(D,) the sum of the code embeddings, and W times the mean content of the items below."""
    path = [*prefix.tolist(), code]
    codes = torch.from_numpy(case.codes).long()
    below = (codes[:, : len(path)] == torch.tensor(path)).all(1)
    total = sum(case.model.codes[level].weight[c] for level, c in enumerate(path))
    return total + case.model.content(case.model.bound.item_content[below].mean(0))
