"""Alignment: learn a map over the frozen text vectors so that they agree with what the log says belongs together.

    accelerate launch training/align.py --config configs/demo/align.yaml --run runs/demo
    accelerate launch --multi_gpu --num_processes 2 training/align.py --run runs/demo  # also without GPUs

L_align of OneSearch (https://arxiv.org/abs/2509.03236): InfoNCE of query-query, item-item and query-item pairs, a
margin that orders shown, clicked and bought items, and graded relevance, each with a weight; by choice the decoupled
loss of GCL-MO (https://arxiv.org/abs/2307.04322) and the semantic negatives of ESANS
(https://arxiv.org/abs/2502.16077). Left out: the encoder itself does not learn (see `onesearch.embed.alignment`). The
negatives of a pair are the other pairs of the whole batch, those of other processes too; pairs that the log knows are
no negatives. The result is `models/align` of the run.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from onesearch.corpus import Corpus, item_texts, make_split
from onesearch.embed import load_text_encoder
from onesearch.embed.alignment import Alignment, Projection
from onesearch.embed.store import stored_vectors
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.run import Run, stamps
from training.align_batches import (
    AlignmentBatches,
    FrozenVectors,
    Mined,
    found_relations,
    mine,
    text_numbers,
    with_negatives,
)
from training.align_check import held_out, held_out_table
from training.align_losses import decoupled_info_nce, info_nce, rank_margin, relevance_fit, semantic_loss
from training.batches import Events, SimilarLengths
from training.launch import (
    UNNAMED,
    Progress,
    Reporter,
    clear_checkpoints,
    last_checkpoint,
    parse_options,
    run_script,
)
from training.pairs import Ints, KnownPairs, interactions
from training.semantic_negatives import SemanticNegatives
from training.sft import SftArguments

log = logging.getLogger(__name__)


@dataclass
class AlignmentArguments:
    """What is learnt from, and the size of the map."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus and embeddings."})
    query_query: float = field(default=0.5, metadata={"help": "Weight of queries that led to one item."})
    item_item: float = field(default=0.3, metadata={"help": "Weight of items taken together or after one query."})
    query_item: float = field(default=1.0, metadata={"help": "Weight of a query and what was taken after it."})
    rank: float = field(default=1.0, metadata={"help": "Weight of the margin: shown < clicked < bought."})
    relevance: float = field(default=1.0, metadata={"help": "Weight of fitting graded relevance."})
    decoupled: float = field(default=0.0, metadata={"help": "Weight of query-item pairs, positives not competing."})
    semantic: float = field(default=0.0, metadata={"help": "Weight of query-item pairs with semantic negatives."})
    pairs: int = field(default=200_000, metadata={"help": "At most so many pairs of each kind are drawn."})
    swing: float = field(default=0.5, metadata={"help": "Share of the item pairs by Swing; the rest by one query."})
    user_pairs: int = field(default=200_000, metadata={"help": "Pairs of users that Swing looks at."})
    min_cosine: float = field(default=0.0, metadata={"help": "Drop pairs whose frozen vectors agree less."})
    temperature: float = field(default=0.05, metadata={"help": "Of the contrastive losses."})
    margin: float = field(default=0.05, metadata={"help": "Cosine between two steps of shown, clicked, cart, bought."})
    clusters: list[int] = field(
        default_factory=lambda: [64, 16], metadata={"help": "Sizes of the two levels of semantic negatives."}
    )
    far: int = field(default=4, metadata={"help": "Semantic negatives of other first-level clusters."})
    near: int = field(default=4, metadata={"help": "Semantic negatives of the same first-level cluster."})
    dimension: int | None = field(default=None, metadata={"help": "Width of the aligned vectors; as before if null."})
    hidden: int = field(default=512, metadata={"help": "Width of the residual part of the map."})
    valid_requests: int = field(default=4000, metadata={"help": "Held-out searches, and pairs bought together."})

    def weights(self) -> dict[str, float]:
        """The weight of each loss by name."""
        return {name: float(getattr(self, name)) for name in LOSSES}

    def check(self) -> None:
        """Stop at values that cannot be meant, before data is touched."""
        for name, weight in self.weights().items():
            if weight < 0:
                raise UserError("a weight is not negative", place=name, value=weight, remedy="0 turns the loss off")
        if not any(self.weights().values()):
            raise UserError("every loss is off", place="alignment", remedy="give one of them a weight")
        if not 0 <= self.swing <= 1:
            raise UserError("a share lies between 0 and 1", place="swing", value=self.swing)
        if self.temperature <= 0:
            raise UserError("the temperature is positive", place="temperature", value=self.temperature)
        for name in ("pairs", "user_pairs", "valid_requests"):
            if getattr(self, name) < 1:
                raise UserError("at least one is needed", place=name, value=getattr(self, name))
        if self.semantic and (len(self.clusters) != 2 or min(self.clusters) < 1):
            raise UserError("semantic negatives need two sizes", place="clusters", value=self.clusters)
        if self.semantic and (min(self.far, self.near) < 0 or self.far + self.near < 1):
            raise UserError("semantic negatives need one of them", place="far, near", value=(self.far, self.near))


LOSSES = ("query_query", "item_item", "query_item", "rank", "relevance", "decoupled", "semantic")


@dataclass
class AlignTrainingArguments(SftArguments):
    """`transformers.TrainingArguments` with the defaults of the demo."""

    output_dir: str | None = field(default=None, metadata={"help": "Checkpoints; by default models/align of the run."})
    learning_rate: float = 1e-3
    warmup_steps: float = 20
    eval_strategy: str = "no"
    ddp_find_unused_parameters: bool | None = False


class AlignTrainer(Trainer):
    """A `Trainer` that sends all vectors of a batch through the map at once and adds up the losses."""

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *arguments: Any,
        batches: AlignmentBatches,
        known: KnownPairs,
        options: AlignmentArguments,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, data_collator=batches, **more)
        self._batches, self._known, self._options = batches, known, options
        self._weights = options.weights()
        self._sums: dict[str, Tensor] = {}
        self._summed = 0

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(np.zeros(len(self._batches.mined), np.int64), whole, self.args.seed)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The weighted sum of the losses; they are kept by name for the log."""
        vectors = model(inputs["vectors"]).float()
        parts = self._contrasted(vectors, inputs["ids"]) | self._by_example(vectors, inputs)
        loss = torch.stack([self._weights[name] * part for name, part in parts.items()]).sum()
        for name, part in parts.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part.detach()
        self._summed += 1
        return (loss, vectors) if return_outputs else loss

    def _contrasted(self, vectors: Tensor, ids: Tensor) -> dict[str, Tensor]:
        """Losses whose negatives come from the batches of all processes."""
        columns = ids.shape[1]
        if not columns:
            return {}
        rows = len(ids)
        own = vectors[: columns * rows].reshape(columns, rows, -1).transpose(0, 1)  # (B, 2C, D)
        processes = self.accelerator.num_processes
        whole, numbers = own, ids
        if processes > 1:
            first = self.accelerator.process_index * rows
            whole, numbers = self.accelerator.gather(own.detach().contiguous()), self.accelerator.gather(ids)
            whole = torch.cat([whole[:first], own, whole[first + rows :]])
        numbers_here = numbers.cpu().numpy()
        parts: dict[str, Tensor] = {}
        same = torch.eye(len(whole), dtype=torch.bool, device=whole.device)
        for place, name in enumerate(self._batches.relations):
            left, right = whole[:, 2 * place], whole[:, 2 * place + 1]
            known = torch.from_numpy(self._known_of(name, *numbers_here[:, 2 * place : 2 * place + 2].T))
            known = known.to(whole.device)
            scores = left @ right.T / self._options.temperature
            if self._weights[name]:
                parts[name] = (info_nce(scores, same, known) + info_nce(scores.T, same, known.T)) / 2
            if name == "query_item" and self._weights["decoupled"]:
                positive, nothing = same | known, torch.zeros_like(same)
                one, other = ((scores, positive), (scores.T, positive.T))
                parts["decoupled"] = (decoupled_info_nce(*one, nothing) + decoupled_info_nce(*other, nothing)) / 2
        # Only this process's rows have a gradient here, and gradients are averaged over the processes afterwards.
        return {name: part + (processes - 1) * (part - part.detach()) for name, part in parts.items()}

    def _known_of(self, relation: str, left: Ints, right: Ints) -> NDArray[np.bool_]:
        ask = {
            "query_query": self._known.query_query,
            "item_item": self._known.text_text,
            "query_item": self._known.query_text,
        }
        return ask[relation](left, right)

    def _by_example(self, vectors: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses in which examples do not meet."""
        rows = len(inputs["ids"])
        stretches = vectors.split([rows * count for _, count in self._batches.roles])
        role = {name: stretch for (name, _), stretch in zip(self._batches.roles, stretches, strict=True)}
        parts: dict[str, Tensor] = {}
        if "steps" in inputs:
            better, worse = ((role["asked"] * role[name]).sum(1) for name in ("better", "worse"))
            parts["rank"] = rank_margin(better, worse, inputs["steps"], self._options.margin)
        if "grades" in inputs:
            cosine = (role["judged_query"] * role["judged_item"]).sum(1)
            parts["relevance"] = relevance_fit(cosine, inputs["grades"])
        if "usable" in inputs:
            query, item = role["query_item_left"], role["query_item_right"]
            negatives = role["negatives"].reshape(*inputs["usable"].shape, -1)
            parts["semantic"] = semantic_loss(
                query, item, negatives, inputs["usable"], inputs["shares"], self._options.far, self._options.temperature
            )
        return parts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss since the last time."""
        if "loss" in logs and self._summed:
            for name, total in self._sums.items():
                logs[f"loss_{name}"] = float(self.accelerator.reduce(total / self._summed, "mean"))
            self._sums, self._summed = {}, 0
        super().log(logs, start_time)


def train(
    options: AlignmentArguments, args: AlignTrainingArguments, progress: Progress | None = None
) -> dict[str, float]:
    """Learn the map into `models/align`; an interrupted training goes on.

    Returns:
        The held-out check, see `held_out`; empty in processes that are not the main one.
    """
    options.check()
    run = Run.open(options.run)
    target = run.folder / "models/align"
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    corpus = Corpus.load(run.folder / "corpus")
    vectors = stored_vectors(run.folder / "embeddings", len(corpus.items))
    projection = Projection(vectors.shape[1], options.dimension or vectors.shape[1], options.hidden, args.seed)
    split = make_split(corpus, run.settings.split)
    encoder = load_text_encoder(run.settings.encoder)
    text = text_numbers(item_texts(corpus))
    known = KnownPairs(corpus, interactions(corpus, split), text)

    log.info("drawing pairs")
    mined = mine(corpus, split, text, options.weights(), options.pairs, options.swing, options.user_pairs, args.seed)
    query_folder = target / ".queries"
    with args.main_process_first(local=False, desc="encoding queries"):
        frozen = FrozenVectors.encode(corpus, mined, vectors, encoder, query_folder)
    mined = frozen.near_enough(mined, options.min_cosine)
    if options.semantic:
        semantic = SemanticNegatives.fit(vectors, options.clusters, args.seed)
        mined = with_negatives(mined, semantic, known, text, options.far, options.near, args.seed)
    if args.process_index == 0:
        tell(mined, options, logging.WARNING if progress is None else logging.INFO)
    whole = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    if len(mined) < whole:
        remedy = "lower --per_device_train_batch_size, or --min_cosine"
        raise UserError("fewer pairs than one batch", place=run.folder / "corpus", value=len(mined), remedy=remedy)

    transformers.set_seed(args.seed)
    trainer = AlignTrainer(
        model=projection,
        args=args,
        train_dataset=Events(np.arange(len(mined))),
        batches=AlignmentBatches(mined, frozen, text),
        known=known,
        options=options,
    )
    if progress is not None:  # the caller shows what happens
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    checkpoints = Path(str(args.output_dir))
    # an interrupted training with the same options and the same vectors goes on
    chosen = {name: value for name, value in asdict(options).items() if name != "run"}
    read = {name: stamps(run.folder / name) for name in ("embeddings/vectors.npy", "corpus/corpus.json")}
    resumed = last_checkpoint(checkpoints, trainer, {"options": chosen, "reads": read})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or resumed)
    values: dict[str, float] = {}
    if trainer.is_world_process_zero():
        alignment = Alignment(projection, run.settings.encoder)
        values = held_out(corpus, split, text, encoder, vectors, alignment, options.valid_requests, args.seed)
        trainer.log(dict(values))
        write_json(target / "log_history.json", trainer.state.log_history)
        alignment.save(target)
        shutil.rmtree(query_folder)
        clear_checkpoints(checkpoints)
    return values


def tell(mined: Mined, options: AlignmentArguments, level: int) -> None:
    """Say how many pairs there are, and, at a level of logging, which losses the log has nothing for."""
    found = found_relations(mined)
    log.info("pairs: %s", ", ".join(f"{name} {count:,}" for name, count in found.items()) or "none")
    # What a loss learns from where that is not called like the loss.
    needs = {"rank": "preferences", "relevance": "judgements", "decoupled": "query_item", "semantic": "query_item"}
    idle = [name for name, weight in options.weights().items() if weight and needs.get(name, name) not in found]
    if idle:
        log.log(level, "nothing in the log to learn from, these losses are off: %s", ", ".join(idle))


def align_run(run: Run, progress: Progress) -> None:
    """The alignment step of a run: the YAML that its settings name, or the defaults, with the run's seed."""
    # An alignment that is half done must not be taken for one that was made by hand.
    (run.folder / "models/align/config.json").unlink(missing_ok=True)
    config = [] if run.settings.align is None else ["--config", run.settings.align]
    train(*parse([*config, "--run", str(run.folder), "--seed", str(run.settings.seed)]), progress)


def parse(arguments: list[str] | None = None) -> tuple[AlignmentArguments, AlignTrainingArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist.
    """
    options, args = parse_options((AlignmentArguments, AlignTrainingArguments), __doc__, arguments)
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/align.py`."""
    run_script(parse, train, show)


def show(values: dict[str, float]) -> None:
    """Print what the held-out products say; only the first process has measured."""
    if values and (table := held_out_table(values)).rows:
        Console().print(table)
    elif values:
        log.warning("the validation part of the log has no searches or visits to measure with")


if __name__ == "__main__":
    main()
