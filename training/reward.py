"""The reward model: what is expected of an item that is shown to a user who searches.

    accelerate launch training/reward.py --config configs/demo/reward.yaml
    accelerate launch training/reward.py --run runs/demo --stage reward --calibration field

Learns from the run's late training events, by time: the features of a request hold what was known when it was made,
and validation requests, which lie later, are for stopping, calibration and the weights of the heads. The test requests
are not looked at. Levels and labels are those of `onesearch/reward/levels.py`: a click is level 1 or higher, a purchase
is level 2, and what is learnt from is told in `training/lists.py`. A log of purchases alone has no clicks: there, what
was bought in the same visit and category by another search (level 1.5) counts as one. `models/STAGE` of the run gets
the model with its calibrators and weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers.trainer_callback import PrinterCallback

from onesearch.context.batch import SLOT_FEATURES, ContextBuilder
from onesearch.context.views import ViewSettings
from onesearch.corpus import TRAIN, VALID, Corpus, make_split
from onesearch.corpus.split import late
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.reward.features import CROSS, TEXT, RewardFeatures
from onesearch.reward.levels import Interactions
from onesearch.reward.model import RewardConfig, RewardNetwork
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
from training.batches import Events, SimilarLengths
from training.beams import generated
from training.grade import learn_policy
from training.launch import (
    UNNAMED,
    Guarded,
    Progress,
    Reporter,
    check_processes,
    clear_checkpoints,
    enough_memory,
    fail,
    held,
    keep_freed_memory,
    last_checkpoint,
    parse_options,
)
from training.lists import DRAWN, CandidateLists, Ints, has_impressions, learnt_events
from training.reward_batches import Judged, RewardBatches
from training.reward_check import judged_lists, summary, summary_table
from training.reward_fit import calibrate, choose_weights
from training.sft import SftArguments

log = logging.getLogger(__name__)


@dataclass
class RewardArguments:
    """What is learnt from, and the size of the model."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus and semantic IDs."})
    stage: str = field(default="reward", metadata={"help": "The model is written to models/STAGE of the run."})
    width: int = field(default=64, metadata={"help": "Width of the towers."})
    heads: int = field(default=4, metadata={"help": "Heads of the attention to the history."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout before the heads."})
    slots: int = field(default=24, metadata={"help": "Past purchases that are read, the most relevant to the query."})
    views: list[str] = field(
        default_factory=list, metadata={"help": "What else is read of the user: uid, queries, long, profile, time."}
    )
    items: str = field(
        default="none", metadata={"help": "Embeddings of single items: none, scratch, or pretrained (models/ITEMS)."}
    )
    item_stage: str = field(default="items", metadata={"help": "Where training/pretrain.py wrote the embeddings."})
    item_width: int = field(default=64, metadata={"help": "Width of embeddings from scratch."})
    frozen: bool = field(default=True, metadata={"help": "Keep pretrained embeddings as they are."})
    shown: int = field(default=16, metadata={"help": "Shown items of a search, in a log with impressions."})
    visit: int = field(default=2, metadata={"help": "Draws from the purchases of the visit; kept if of the category."})
    own: int = field(default=5, metadata={"help": "Past purchases that fit the query, in a list."})
    query: int = field(default=4, metadata={"help": "Items that were bought after the same query, in a list."})
    category: int = field(default=2, metadata={"help": "Items of the same category, in a list."})
    random: int = field(default=2, metadata={"help": "Items at random, as often as they are bought, in a list."})
    beam: int = field(default=0, metadata={"help": "Items that a generator answers, in a list (see --generator)."})
    beam_requests: int = field(default=10_000, metadata={"help": "Training requests that the generator is asked."})
    generator: str = field(default="sft", metadata={"help": "Stage of the generator that is asked."})
    listwise: float = field(default=0.3, metadata={"help": "Weight of the softmax over each list."})
    relevance: float = field(default=0.5, metadata={"help": "Weight of the relevance head's loss."})
    recent: float = field(default=0.4, metadata={"help": "Learn from this last share of the training events."})
    requests: int = field(default=100_000, metadata={"help": "Training requests at most."})
    valid_requests: int = field(default=8000, metadata={"help": "Held-out requests: half to fit, half to check."})
    calibration: str = field(default="monotone", metadata={"help": "none, monotone, or field (reads the item too)."})
    calibration_epochs: int = field(default=20, metadata={"help": "Passes over the held-out rows."})
    fusion: list[float] = field(
        default_factory=list,
        metadata={"help": "Weights of click, conversion, both, relevance; by default chosen on validation requests."},
    )
    policy: bool = field(default=False, metadata={"help": "Learn weights for each request (GRADE)."})

    def numbers(self) -> dict[str, int]:
        """How many of each kind of `DRAWN` a list has."""
        return {name: int(getattr(self, name)) for name in DRAWN}

    def check(self) -> None:
        """Stop at values that cannot be meant, before data is touched."""
        _known("items", self.items, ("none", "scratch", "pretrained"))
        _known("calibration", self.calibration, ("none", "monotone", "field"))
        for name, number in {**self.numbers(), "shown": self.shown}.items():
            if number < 0:
                raise UserError("a number of items is not negative", place=name, value=number)
        for name in ("requests", "valid_requests", "width", "slots", "item_width", "beam_requests"):
            if getattr(self, name) < 1:
                raise UserError("at least one is needed", place=name, value=getattr(self, name))
        if self.width % self.heads:
            remedy = "choose a multiple of --heads"
            raise UserError("the heads do not divide the width", place="width", value=self.width, remedy=remedy)
        if self.fusion and (len(self.fusion) != 4 or min(self.fusion) < 0 or not any(self.fusion)):
            remedy = "give four numbers: click, conversion, both, relevance"
            raise UserError("weights of the heads", place="fusion", value=self.fusion, remedy=remedy)
        if not sum(self.numbers().values()) and not self.shown:
            raise UserError("a list of nothing", place="own, query, category, random", remedy="give negatives")


@dataclass
class RewardTrainingArguments(SftArguments):
    """`transformers.TrainingArguments` with the defaults of the demo."""

    output_dir: str | None = field(default=None, metadata={"help": "Checkpoints; by default models/STAGE of the run."})
    learning_rate: float = 2e-3
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 512
    warmup_steps: float = 50
    eval_steps: float | None = 200
    save_steps: float = 200


class RewardTrainer(Guarded):
    """A `Trainer` whose batches are the same ones however many processes there are."""

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(np.zeros(len(self.train_dataset), np.int64), whole, self.args.seed)


@dataclass(frozen=True)
class Material:
    """What a training learns from: `events` (n,) and `held_out` events, half of whose users are for fitting."""

    run: Run
    corpus: Corpus
    split: NDArray[np.int8]
    batches: Any  # `RewardBatches`, or batches that were kept
    events: Ints
    fit: Ints
    check: Ints

    @property
    def features(self) -> RewardFeatures:
        found: RewardFeatures = self.batches.features
        return found


def gather(options: RewardArguments, seed: int) -> Material:
    """Read the run and fit what a request is read with.

    Raises:
        UserError: the log has nothing to learn from or to check with.
    """
    run = Run.open(options.run)
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    split = make_split(corpus, run.settings.split)
    training, learnt = split == TRAIN, late(corpus, split, options.recent)
    all_events = learnt_events(corpus)
    events = sampled(all_events[(training & learnt)[all_events]], options.requests, seed)
    held_out = sampled(all_events[split[all_events] == VALID], options.valid_requests, seed)
    if not len(held_out):
        raise UserError("no validation requests", place=run.folder / "corpus", remedy="the log needs more events")
    # What a request is read with comes from the events before those to learn from, of every kind.
    before = np.flatnonzero(training & ~learnt)
    log.info("preparing %s training requests", f"{len(events):,}")
    reads = ViewSettings(views=tuple(options.views))
    encoder = load_text_encoder(run.settings.encoder)
    builder = ContextBuilder.fit(
        corpus, split, before, encoder, table.codes, options.slots, seed, reads, positions=None, run=run
    )
    interactions = Interactions.of(corpus)
    shows = has_impressions(corpus)
    numbers = options.numbers()
    if shows:  # the shown rows are the data; unexposed ones only where they are asked for
        numbers = dict.fromkeys(DRAWN, 0) | {"random": options.random}
    beams = None
    if numbers["beam"]:
        asked = np.concatenate([sampled(events, options.beam_requests, seed), held_out])
        beams = generated(run, corpus, asked, options.beam, options.generator)
    lists = CandidateLists(corpus, training, interactions, numbers, options.shown, seed, beams)
    judged = Judged.of(corpus, lists.width)
    batches = RewardBatches(RewardFeatures.of(builder), lists, interactions, judged, np.concatenate([events, held_out]))
    first = corpus.user[held_out] % 2 == 0
    fit, check = held_out[first], held_out[~first]
    if not len(fit) or not len(check):
        fit = check = held_out
    return Material(run, corpus, split, batches, events, fit, check)


def new_network(options: RewardArguments, material: Material, items: torch.Tensor | None) -> RewardNetwork:
    """A network that has seen nothing but pretrained items (N, W), where there are any."""
    features = material.features
    table = SidTable.load(material.run.folder / "sid")
    count = {"none": 0}.get(options.items, len(features.price))
    config = RewardConfig(
        width=options.width,
        heads=options.heads,
        dropout=options.dropout,
        text_vocabulary=len(features.builder.tokenizer),
        level_sizes=list(table.level_sizes),
        query=features.builder.selector.texts.vectors.shape[1],
        taste=2 * features.builder.selector.taste.shape[1],
        content=features.item_content.shape[1],
        slot_features=SLOT_FEATURES,
        cross=len(CROSS),
        text=len(TEXT),
        items=count,
        item_width=options.item_width if items is None else items.shape[1],
        frozen=options.frozen and items is not None,
        views=features.builder.views.sizes() or None,
        listwise=options.listwise,
        relevance=options.relevance,
        calibration=options.calibration,
        policy=options.policy,
    )
    network = RewardNetwork(config)
    if items is not None and network.own is not None:
        with torch.no_grad():
            network.own.weight.copy_(items)
    sample = material.batches([*map(int, sampled(material.events, 2000, 0))])
    there = sample["items"] >= 0
    cross = sample["cross"][there]
    network.cross_mean.copy_(cross.mean(0))
    network.cross_scale.copy_(cross.std(0).clamp(min=1e-2))
    for part in (network.calibrators, network.policy):
        if part is not None:  # fitted after the towers, which they do not change
            part.requires_grad_(False)
    return network.bind(torch.from_numpy(features.item_content), torch.from_numpy(features.builder.codes))


def pretrained_items(options: RewardArguments, material: Material) -> torch.Tensor | None:
    """(N, W) embeddings that `training/pretrain.py` wrote; None where none are asked for.

    Raises:
        UserError: there are none, or those of another catalogue.
    """
    if options.items != "pretrained":
        return None
    path = material.run.folder / "models" / options.item_stage / "items.safetensors"
    if not path.exists():
        remedy = f"accelerate launch training/pretrain.py --run {material.run.folder} --stage {options.item_stage}"
        raise UserError("no pretrained items", place=path, remedy=remedy)
    found = load_file(path)["items"]
    if len(found) != len(material.corpus.items):
        raise UserError("items of another catalogue", place=path, value=len(found), remedy="pretrain them again")
    return found


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
    trainer.accelerator.end_training()
    return values


def sampled(events: Ints, most: int, seed: int) -> Ints:
    """At most so many of the events, in their order."""
    if len(events) <= most:
        return events
    return np.sort(np.random.default_rng(seed).choice(events, most, replace=False))


def _known(place: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError("unknown name", place=place, value=value, remedy=f"known: {', '.join(known)}")


def parse(arguments: list[str] | None = None) -> tuple[RewardArguments, RewardTrainingArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist.
    """
    options, args = parse_options((RewardArguments, RewardTrainingArguments), __doc__, arguments)
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/reward.py`."""
    try:
        check_processes()
        options, args = parse()
        options.check()
        args.disable_tqdm = False
        with held(Run.open(options.run)), enough_memory():
            values = train(options, args)
        if values:
            Console().print(summary_table(values))
    except UserError as error:
        raise SystemExit(fail(error)) from None


if __name__ == "__main__":
    main()
