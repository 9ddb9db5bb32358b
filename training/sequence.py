"""Training of the causal model of histories: every prefix of every history in one pass, with an interest head.

    accelerate launch training/sequence.py --config configs/benchmarks/amazon-beauty-sequence.yaml --learning_rate 3e-3

A `transformers.Trainer` does the loop, as in `training/sft.py`: checkpoints, resume, several processes and mixed
precision are the ones people know, and every option of `TrainingArguments` is an option here. Only training events are
learnt from. The best checkpoint is that with the highest NDCG@10 on validation requests; what interest counts beside
generation in `--mode both` is chosen on them too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Sampler
from transformers import AutoConfig
from transformers.trainer_callback import PrinterCallback

from onesearch.context.sequence import ItemContent, SequenceBuilder
from onesearch.corpus import VALID, Corpus, make_split, sample_requests
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.model.sequence import SequenceConfig, SequenceGenerator
from onesearch.readers.sequence import SequenceReader, item_tree
from onesearch.run import Run, stamps
from onesearch.semantic_ids import item_vectors
from onesearch.sid import SidTable
from training.batches import SimilarLengths
from training.histories import Histories
from training.launch import (
    UNNAMED,
    Guarded,
    Progress,
    Reporter,
    ScriptArguments,
    clear_checkpoints,
    keep_freed_memory,
    last_checkpoint,
    parse_options,
    run_script,
)
from training.modes import validation

log = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The model's size and what it reads."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus and semantic IDs."})
    stage: str = field(default="sft", metadata={"help": "The model is written to models/STAGE of the run."})
    backbone: str = field(
        default="gpt2",
        metadata={"help": "Family of a new causal backbone (gpt2, llama, qwen3), or a config by path or hub id."},
    )
    width: int = field(default=128, metadata={"help": "Width of a new backbone."})
    layers: int = field(default=2, metadata={"help": "Its layers."})
    heads: int = field(default=4, metadata={"help": "Its attention heads."})
    feed_forward: int = field(default=256, metadata={"help": "Width of its feed-forward layers."})
    positions: int = field(default=50, metadata={"help": "Items of a history that are read, the latest."})
    dropout: float = field(default=0.3, metadata={"help": "Dropout of what is read and of the states."})
    content_width: int = field(default=192, metadata={"help": "Principal directions of the item vectors; 0 for none."})
    item_embedding: bool = field(default=False, metadata={"help": "Give each item an embedding of its own besides."})
    temperature: float = field(default=0.07, metadata={"help": "Of the cosines."})
    normalise: str = field(
        default="children", metadata={"help": "A code competes with a prefix's children, or with its level's codes."}
    )
    interest: float = field(default=1.0, metadata={"help": "Weight of the interest head's loss; 0 for no head."})
    negatives: int = field(default=0, metadata={"help": "Items that the interest head's loss draws; 0 for all."})
    valid_requests: int = field(default=4000, metadata={"help": "Held-out examples."})


@dataclass
class SequenceArguments(ScriptArguments):
    """`transformers.TrainingArguments` with defaults for histories."""

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    per_device_train_batch_size: int = 256
    per_device_eval_batch_size: int = 512
    num_train_epochs: float = 10.0
    warmup_steps: float = 100
    lr_scheduler_type: str = "cosine"
    logging_steps: float = 50
    save_strategy: str = "epoch"
    eval_strategy: str = "epoch"
    load_best_model_at_end: bool | None = True
    metric_for_best_model: str | None = "ndcg@10"
    greater_is_better: bool | None = True
    label_names: list[str] | None = field(default_factory=lambda: ["labels"])


Ranked = Callable[[], tuple[dict[str, float], float]]
"""Gives what `validation` gives for the model as it is."""


class SequenceTrainer(Guarded):
    """A `Trainer` whose batches hold histories of similar length, the same ones however many processes there are."""

    def __init__(self, *arguments: Any, histories: Histories, ranked: Ranked, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._histories, self._ranked = histories, ranked

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """The loss, and how well each mode ranks: the loss rises long before ranking gets worse."""
        values: dict[str, float] = super().evaluate(*arguments, **options)
        found = {f"eval_{name}": value for name, value in self._ranked()[0].items()}
        self.model.train()
        self.log(found)
        return {**values, **found}

    def get_train_dataloader(self) -> Any:
        examples = self.train_dataset
        self.data_collator = lambda rows: self._histories.batch(examples, rows)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        examples = self.eval_dataset if eval_dataset is None else eval_dataset
        self.data_collator = lambda rows: self._histories.batch(examples, rows)
        return super().get_eval_dataloader(eval_dataset)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        examples = self.train_dataset if train_dataset is None else train_dataset
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(examples.end - examples.first, whole, self.args.seed)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The loss alone: the Trainer would gather all other outputs."""
        with torch.inference_mode(), self.compute_loss_context_manager():
            return model(**self._prepare_inputs(inputs)).loss.detach(), None, None


def new_backbone(model: ModelArguments) -> transformers.PreTrainedConfig:
    """The configuration of a backbone that starts from nothing; a path or hub id is read as it is."""
    if model.backbone not in transformers.CONFIG_MAPPING:
        return AutoConfig.from_pretrained(model.backbone)
    kind = transformers.CONFIG_MAPPING[model.backbone]
    if model.backbone == "gpt2":
        return kind(
            n_embd=model.width,
            n_layer=model.layers,
            n_head=model.heads,
            n_inner=model.feed_forward,
            n_positions=model.positions + 1,
            activation_function="relu",
            embd_pdrop=0.0,  # the model drops what is read and the states; between layers it would cost as much again
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
    return kind(
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        head_dim=model.width // model.heads,
        intermediate_size=model.feed_forward,
        max_position_embeddings=model.positions + 1,
    )


def train(model_args: ModelArguments, args: SequenceArguments, progress: Progress | None = None) -> None:
    """Train on the run's training events into `models/STAGE`; an interrupted training goes on."""
    keep_freed_memory()
    run = Run.open(model_args.run)
    target = run.folder / "models" / model_args.stage
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    split = make_split(corpus, run.settings.split)
    held_out = sample_requests(corpus, split, VALID, model_args.valid_requests, args.seed)
    encoder = load_text_encoder(run.settings.encoder) if corpus.queries else None
    builder = SequenceBuilder(corpus, model_args.positions, encoder)
    histories = Histories(builder, split)
    training = histories.training(split)
    if len(training) < args.train_batch_size * args.world_size:
        raise UserError(
            "fewer histories than one batch",
            place=run.folder / "corpus",
            value=len(training),
            remedy="lower --per_device_train_batch_size",
        )
    content = ItemContent.fit(item_vectors(run, corpus, split), model_args.content_width)

    transformers.set_seed(args.seed)
    config = SequenceConfig(
        backbone=new_backbone(model_args),
        level_sizes=list(table.level_sizes),
        positions=model_args.positions,
        content=content.vectors.shape[1],
        items=len(table.codes) if model_args.item_embedding else 0,
        query=0 if encoder is None else encoder.dimension,
        temperature=model_args.temperature,
        dropout=model_args.dropout,
        normalise=model_args.normalise,
        interest=model_args.interest,
        negatives=model_args.negatives,
    )
    model = SequenceGenerator(config).bind(item_tree(table, content, np.arange(len(table.codes))))
    trainer = SequenceTrainer(
        model=model,
        args=args,
        train_dataset=training,
        eval_dataset=histories.held_out(held_out),
        histories=histories,
        ranked=lambda: validation(SequenceReader(table, builder, content, model), held_out),
    )
    if progress is not None:  # the caller shows what happens
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    checkpoints = Path(str(args.output_dir))
    # an interrupted training with the same settings and the same semantic IDs goes on
    basis = {"model": config.to_dict(), "sid": stamps(run.folder / "sid")}
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis))
    if trainer.is_world_process_zero():
        reader = SequenceReader(table, builder, content, model)
        found, model.config.interest_share = validation(reader, held_out)
        trainer.log({f"valid_{name}": value for name, value in found.items()})
        content.save(target)
        model.save_pretrained(target)
        write_json(target / "log_history.json", trainer.state.log_history)
        clear_checkpoints(checkpoints)


def train_run(run: Run, progress: Progress) -> None:
    """The training step of a run: the YAML that its settings name, or the defaults, with the run's seed."""
    transformers.utils.logging.disable_progress_bar()
    config = [] if run.settings.sft is None else ["--config", run.settings.sft]
    train(*parse([*config, "--run", str(run.folder), "--seed", str(run.settings.seed)]), progress)


def parse(arguments: list[str] | None = None) -> tuple[ModelArguments, SequenceArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist.
    """
    model_args, args = parse_options((ModelArguments, SequenceArguments), __doc__, arguments)
    return model_args, args


def main() -> None:
    """The entry point of `accelerate launch training/sequence.py`."""
    run_script(parse, train)


if __name__ == "__main__":
    main()
