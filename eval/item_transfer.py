"""Pretrained and frozen item embeddings against others: how far a reward model's AUC falls on what it has not seen.

    python -m eval.item_transfer --run runs/demo --config configs/ablations/items.yaml

The check of GPSD (https://arxiv.org/abs/2506.03699): the gap of the AUC on the lists that were learnt from and on
validation lists, by width of the embeddings, with embeddings from scratch, pretrained, and pretrained and frozen. Ours:
only the embeddings get wider, the towers stay; each row is trained in two settings, with everything that the reward
model reads, and with single items alone (the query's tokens, the history and the candidate by their embeddings; no
text, taste, price, semantic ID or cross feature). The test requests are not looked at. Writes `eval/item_transfer.json`
of the run.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from onesearch.errors import UserError
from onesearch.files import read_yaml, write_json
from onesearch.reward.features import RewardFeatures
from onesearch.reward.model import RewardNetwork, raw_logits
from onesearch.run import Run
from onesearch.settings import check_value
from training import pretrain, reward
from training.launch import fail
from training.lists import Ints
from training.reward_batches import Judged
from training.reward_check import auc
from training.reward_material import Material, gather, new_network

log = logging.getLogger(__name__)

ROWS: Final = ("scratch", "pretrained", "frozen")
SETTINGS: Final = ("items alone", "everything")
TYPES: Final = {"widths": Sequence[int], "settings": Sequence[str], "pretrain": dict, "train": dict, "seed": int}
BLOCK: Final = 512


@dataclass(frozen=True)
class Kept:
    """Batches that were collated before, in place of `RewardBatches`: every row and epoch reads the same lists.

    Attributes:
        tensors: of all lists, by name. row: (E,) of each event, -1 for others.
    """

    features: RewardFeatures
    tensors: dict[str, torch.Tensor]
    row: Ints
    judged: Judged

    @classmethod
    def of(cls, material: Material) -> Kept:
        """The lists of the material's training and check events."""
        events = np.concatenate([material.events, material.check])
        parts = [material.batches([*map(int, events[start : start + BLOCK])]) for start in range(0, len(events), BLOCK)]
        slots = max(part["slot_items"].shape[1] for part in parts)
        tokens = max(part["query_ids"].shape[1] for part in parts)
        row = np.full(len(material.corpus.item), -1, np.int64)
        row[events] = np.arange(len(events))
        wide = {"slot_items": slots, "slot_features": slots, "query_ids": tokens, "query_mask": tokens}
        tensors = {
            name: torch.cat([_widened(part[name], wide.get(name), -1 if name == "slot_items" else 0) for part in parts])
            for name in parts[0]
        }
        return cls(material.features, tensors, row, material.batches.judged)

    def alone(self) -> Kept:
        """The same without what is known of queries and items but their tokens and embeddings."""
        blank = {name: torch.zeros_like(self.tensors[name]) for name in ("cross", "query_vector")}
        return replace(self, tensors=self.tensors | blank)

    def __call__(self, events: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = torch.from_numpy(self.row[np.asarray(events, np.int64)])
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


def _widened(tensor: torch.Tensor, width: int | None, value: int) -> torch.Tensor:
    """With so many columns."""
    if width is None or tensor.shape[1] == width:
        return tensor
    wide = tensor.new_full((tensor.shape[0], width, *tensor.shape[2:]), value)
    wide[:, : tensor.shape[1]] = tensor
    return wide


@torch.inference_mode()
def purchase_auc(network: RewardNetwork, kept: Kept, events: Ints) -> float:
    """AUC of the purchase over the rows of these events' lists."""
    network.eval()
    labels, scores = [], []
    for start in range(0, len(events), BLOCK):
        given = kept([*map(int, events[start : start + BLOCK])])
        label, there = given.pop("labels")[..., 1], given["items"] >= 0
        given.pop("weights")
        found = raw_logits(network(**given).logits.double())[..., 2]
        labels.append(label[there].numpy() > 0)
        scores.append(found[there].numpy())
    return auc(np.concatenate(labels), np.concatenate(scores))


def compare(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Train all rows, and write what came out.

    Raises:
        UserError: an unknown option.
    """
    seed = int(config.get("seed", 0))
    run = Run.open(folder)
    base = ["--run", str(folder), "--seed", str(seed)]
    options, _ = reward.parse(base + _arguments(config.get("train", {})))
    if options.views:
        raise UserError("views are not compared here", place="views", value=options.views, remedy="leave them out")
    material = gather(options, seed)
    everything = Kept.of(material)
    settings = {"items alone": everything.alone(), "everything": everything}
    settings = {name: settings[name] for name in config.get("settings", SETTINGS)}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for width in config["widths"]:
            started = time.perf_counter()
            more = {**config.get("pretrain", {}), "width": width, "stage": "item-transfer"}
            known, arguments = pretrain.parse([*base, *_arguments({**more, "output_dir": f"{place}/items{width}"})])
            pretrain.pretrain(known, arguments)
            items = load_file(run.folder / "models/item-transfer/items.safetensors")["items"]
            log.info("pretrained items of width %d: %.0f s", width, time.perf_counter() - started)
            for setting, kept in settings.items():
                for row in ROWS:
                    found.append(
                        _trained(config, base, replace(material, batches=kept), width, row, setting, items, place)
                    )
                    log.info(json.dumps(found[-1]))
    report = {"config": config, "training_lists": len(material.events), "check_lists": len(material.check)}
    report["rows"] = found
    write_json(folder / "eval" / "item_transfer.json", report)
    return report


def _trained(
    config: dict[str, Any],
    base: list[str],
    material: Material,
    width: int,
    row: str,
    setting: str,
    items: torch.Tensor,
    place: str,
) -> dict[str, Any]:
    """One row of the table."""
    started = time.perf_counter()
    where = f"{place}/{setting}-{width}-{row}".replace(" ", "-")
    more = {**config.get("train", {}), "items": "scratch", "item_width": width, "frozen": row == "frozen"}
    more |= {"output_dir": where, "save_strategy": "no", "eval_strategy": "no"}
    options, args = reward.parse([*base, *_arguments(more)])
    transformers.set_seed(args.seed)
    network = new_network(options, material, None if row == "scratch" else items)
    if setting == "items alone":
        network.bind(*(torch.zeros_like(one) for one in network.bound))
    table = network.own
    before = None if table is None else table.weight.detach().clone()
    reward.learn(options, args, material, network, lambda done, total: None)
    moved = 0.0 if table is None or before is None else float((table.weight.detach() - before).norm())
    kept: Any = material.batches
    training, check = (purchase_auc(network, kept, events) for events in (material.events, material.check))
    return {
        "setting": setting,
        "width": width,
        "items": row,
        "train_auc": training,
        "valid_auc": check,
        "gap": training - check,
        "moved": moved,
        "seconds": round(time.perf_counter() - started, 1),
    }


def _arguments(options: dict[str, Any]) -> list[str]:
    found: list[str] = []
    for name, value in options.items():
        found += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return found


def table(report: dict[str, Any]) -> Table:
    """The report for people."""
    shown = Table("read", "width", "items", "AUC, training", "AUC, validation", "gap", "seconds", box=SIMPLE_HEAD)
    for row in report["rows"]:
        values = (f"{row[name]:.4f}" for name in ("train_auc", "valid_auc", "gap"))
        shown.add_row(row["setting"], str(row["width"]), row["items"], *values, f"{row['seconds']:.0f}")
    return shown


def read_config(path: Path) -> dict[str, Any]:
    """The YAML; a `UserError` for what is not known."""
    config = read_yaml(path)
    for name, value in config.items():
        if name not in TYPES:
            raise UserError("unknown option", place=path, value=name, remedy=f"known: {', '.join(TYPES)}")
        check_value(value, TYPES[name], f"{path}: {name}")
    for name in config.get("settings", SETTINGS):
        if name not in SETTINGS:
            raise UserError("unknown setting", place=path, value=name, remedy=f"known: {', '.join(SETTINGS)}")
    if not config.get("widths"):
        raise UserError("nothing to compare", place=path, remedy="give `widths`")
    return config


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="run folder with semantic IDs")
    parser.add_argument("--config", type=Path, default=Path("configs/ablations/items.yaml"), help="widths and options")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    log.setLevel(logging.INFO)
    transformers.utils.logging.disable_progress_bar()
    try:
        report = compare(given.run, read_config(given.config))
    except UserError as error:
        raise SystemExit(fail(error)) from None
    if given.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        Console().print(table(report))


if __name__ == "__main__":
    main()
