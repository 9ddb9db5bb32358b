"""The reward model: what is expected of an item that is shown to a user who searches.

    accelerate launch training/reward.py --config configs/demo/reward.yaml
    accelerate launch training/reward.py --run runs/demo --stage reward --calibration field

Learns from the run's late training events, by time: the features of a request hold what was known when it was made,
and validation requests, which lie later, are for calibration and the weights of the heads. The test requests are not
looked at. Levels and labels are those of `onesearch/reward/levels.py`: a click is level 1 or higher, a purchase
is level 2, and what is learnt from is told in `training/lists.py`. A log of purchases alone has no clicks: there, what
was bought in the same visit and category by another search (level 1.5) counts as one. `models/STAGE` of the run gets
the model with its calibrators and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from torch.utils.data import Sampler
from transformers.trainer_callback import PrinterCallback

from onesearch.corpus import TRAIN
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.reward.model import RewardNetwork
from onesearch.run import Run, stamps
from training.batches import Events, SimilarLengths
from training.grade import learn_policy
from training.launch import (
    UNNAMED,
    Guarded,
    Progress,
    Reporter,
    clear_checkpoints,
    keep_freed_memory,
    last_checkpoint,
    parse_options,
    run_script,
)
from training.reward_check import judged_lists, summary, summary_table
from training.reward_fit import calibrate, choose_weights
from training.reward_material import Material, gather, new_network, pretrained_items
from training.reward_options import RewardArguments, RewardTrainingArguments


class RewardTrainer(Guarded):
    """A `Trainer` whose batches are the same ones however many processes there are."""

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(np.zeros(len(self.train_dataset), np.int64), whole, self.args.seed)


def learn(
    options: RewardArguments,
    args: RewardTrainingArguments,
    material: Material,
    network: RewardNetwork,
    progress: Progress | None = None,
) -> RewardTrainer:
    """Train the towers and the heads of a network in place; an interrupted training goes on."""
    judged = -1 - np.arange(len(material.batches.judged.queries))
    trainer = RewardTrainer(
        model=network,
        args=args,
        data_collator=material.batches,
        train_dataset=Events(np.concatenate([material.events, judged])),
        eval_dataset=Events(material.check),
    )
    if progress is not None:  # the caller shows what happens
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    chosen = {name: value for name, value in asdict(options).items() if name != "run"}
    basis: Mapping[str, Any] = {"options": chosen, "sid": stamps(material.run.folder / "sid")}
    resumed = last_checkpoint(Path(str(args.output_dir)), trainer, basis)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or resumed)
    return trainer


def train(options: RewardArguments, args: RewardTrainingArguments, progress: Progress | None = None) -> dict[str, Any]:
    """Train a reward model into `models/STAGE`; an interrupted training goes on.

    Returns:
        What the held-out check found, see `training/reward_check.py`; empty in processes that are not the main one.
    """
    options.check()
    keep_freed_memory()
    target = Run.open(options.run).folder / "models" / options.stage
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    material = gather(options, args.seed)
    if len(material.events) < args.train_batch_size * args.world_size:
        raise UserError(
            "fewer training requests than one batch",
            place=material.run.folder / "corpus",
            value=len(material.events),
            remedy="lower --per_device_train_batch_size",
        )
    items = pretrained_items(options, material)
    transformers.set_seed(args.seed)
    network = new_network(options, material, items)
    trainer = learn(options, args, material, network, progress)
    values: dict[str, Any] = {}
    if trainer.is_world_process_zero():
        # from now on items are known by all training events, as they are when the model serves
        batches = material.batches.knowing(np.flatnonzero(material.split == TRAIN))
        content = torch.from_numpy(batches.features.item_content)
        network.eval().bind(content, torch.from_numpy(batches.features.builder.codes)).keep_vectors()
        fit, check = (judged_lists(network, batches, events) for events in (material.fit, material.check))
        before = check
        if options.calibration != "none":
            calibrate(network, fit, options.calibration_epochs, args.seed)
            fit, check = fit.calibrated(network), check.calibrated(network)
        network.config.fusion = options.fusion or choose_weights(fit)
        if network.policy is not None:
            learn_policy(network.policy, fit, network.config.fusion, seed=args.seed)
        values = summary(network, before, check)
        trainer.log({name: value for name, value in values.items() if isinstance(value, float)})
        batches.features.builder.save(target)
        network.save_pretrained(target)
        made = {**material.batches.lists.numbers, "shown": options.shown, "generator": options.generator}
        write_json(target / "lists.json", {**made, "seed": args.seed})
        write_json(target / "valid.json", values)
        write_json(target / "log_history.json", trainer.state.log_history)
        clear_checkpoints(Path(str(args.output_dir)))
    return values


def parse(arguments: list[str] | None = None) -> tuple[RewardArguments, RewardTrainingArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist, or one that cannot be.
    """
    options, args = parse_options((RewardArguments, RewardTrainingArguments), __doc__, arguments)
    options.check()
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/reward.py`."""
    run_script(parse, train, show)


def show(values: dict[str, float]) -> None:
    """Print what the validation searches say; only the first process has measured."""
    if values:
        Console().print(summary_table(values))


if __name__ == "__main__":
    main()
