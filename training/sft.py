"""Supervised fine-tuning: given a query and the user's past purchases, generate the semantic ID of what was bought.

    accelerate launch training/sft.py --config configs/demo/sft.yaml --learning_rate 3e-4
    accelerate launch --multi_gpu --num_processes 2 training/sft.py --run runs/demo  # also without GPUs

A `transformers.Trainer` does the loop, so checkpoints, resume, trackers, several processes and mixed precision are the
ones people know; every option of `TrainingArguments` is an option here. This file trains the project's own generator,
in its personalised stage alone; with `model: language` a language model of Hugging Face goes through stages instead
(`training/language.py`), with the options of that file.
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
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import AutoConfig
from transformers.trainer_callback import PrinterCallback

from onesearch.context.batch import HALF_LIVES, ContextBuilder
from onesearch.context.tokenizer import QueryTokenizer
from onesearch.context.views import ViewSettings
from onesearch.corpus import TRAIN, VALID, Corpus, make_split, sample_requests
from onesearch.corpus.split import late, target_kind
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError
from onesearch.files import write_json
from onesearch.model import Generator, GeneratorConfig
from onesearch.model.absorbed import absorbed
from onesearch.readers.generator import GeneratorReader
from onesearch.retriever import Retriever
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
from training import language, modes
from training.batches import Events, OneAhead, SimilarLengths, TrainingBatches
from training.karma import Told, check_weights, frozen_vectors
from training.launch import (
    UNNAMED,
    Guarded,
    Progress,
    Reporter,
    ScriptArguments,
    clear_checkpoints,
    keep_freed_memory,
    last_checkpoint,
    option,
    parse_options,
    run_script,
)
from training.processes import train_together
from training.validation import interest_validation, ranks_together, summary

log = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """The generator's size and what it reads."""

    model: str = field(default="generator", metadata={"help": "Which training: generator, or language (see there)."})
    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus and semantic IDs."})
    stage: str = field(default="sft", metadata={"help": "The model is written to models/STAGE of the run."})
    backbone: str = field(
        default="bart",
        metadata={"help": "Family of a new backbone (bart, t5, ...), or a config by path or hub id."},
    )
    width: int = field(default=128, metadata={"help": "Width of a new backbone."})
    layers: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Encoder and decoder layers."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    feed_forward: int = field(default=256, metadata={"help": "Width of the feed-forward layers."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout; 0 suits a pass or two over a large log."})
    slots: int = field(default=24, metadata={"help": "Past purchases that the model is given."})
    history: str = field(
        default="relevant", metadata={"help": "Which purchases: relevant (to the query), recent or none."}
    )
    views: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What else is read of the user: uid, queries, long, profile, time, place, device; none by default."
        },
    )
    uid: str = field(
        default="nearest", metadata={"help": "The user's semantic IDs: nearest (to the mean vector) or paper."}
    )
    past_queries: int = field(default=8, metadata={"help": "Queries that the view `queries` reads."})
    long: str = field(
        default="qformer", metadata={"help": "How the view `long` reads the whole past: qformer or lrea."}
    )
    long_tokens: int = field(default=3, metadata={"help": "Soft tokens of the view `long`."})
    copy: bool = field(default=True, metadata={"help": "Let past purchases add their own probability."})
    content: bool = field(default=True, metadata={"help": "Compare the query with the content below each prefix."})
    spelling: bool = field(default=True, metadata={"help": "Look up the query's terms below each prefix."})
    prior: bool = field(default=True, metadata={"help": "Give the model fresh popularity counts."})
    offers: bool = field(default=True, metadata={"help": "Tell the model what is on offer, where the log says so."})
    plain_loss: float = field(default=0.3, metadata={"help": "Weight of the loss without the copy path."})
    interest: int = field(
        default=0, metadata={"help": "Width of the vector of what the user wants next (KARMA); 0 for none."}
    )
    action: float = field(default=1.0, metadata={"help": "Weight of the interest vector's contrastive loss."})
    generate: float = field(
        default=0.0, metadata={"help": "Weight of generating the target's text and semantic ID from the history."}
    )
    reconstruct: float = field(default=0.0, metadata={"help": "Weight of the same from the interest vector alone."})
    regress: float = field(
        default=0.0, metadata={"help": "Weight of telling the target's frozen picture vector from the interest vector."}
    )
    soft_tokens: int = field(default=2, metadata={"help": "Positions that `reconstruct` makes of the interest vector."})
    hard_negatives: int = field(
        default=4, metadata={"help": "Items with the target's first code that the contrastive loss draws a request."}
    )
    recent: float = field(default=0.6, metadata={"help": "Learn from this last share of the training events."})
    valid_requests: int = field(default=4000, metadata={"help": "Held-out examples for the validation loss."})


@dataclass
class SftArguments(ScriptArguments):
    """`transformers.TrainingArguments` with the defaults of the demo."""

    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    adam_beta2: float = 0.98
    per_device_train_batch_size: int = 512
    per_device_eval_batch_size: int = 512
    num_train_epochs: float = 1.0
    warmup_steps: float = 100
    lr_scheduler_type: str = "cosine"
    logging_steps: float = 50
    save_steps: float = 500
    eval_steps: float | None = 500


class SftTrainer(Guarded):
    """A `Trainer` whose batches hold queries of similar length, the same ones however many processes there are."""

    def __init__(self, *arguments: Any, batches: TrainingBatches, **options: Any) -> None:
        super().__init__(*arguments, data_collator=batches, **options)
        self._batches = batches
        self._ahead: OneAhead | None = None
        self._terms: dict[str, list[torch.Tensor]] = {}

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As the library's; the decoder attends to the request in the way that is less work."""
        with absorbed(self.model):
            return super().train(*arguments, **options)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As the library's, one batch ahead."""
        if self._ahead is None or self._ahead.batches is not epoch_iterator:
            self._ahead = OneAhead(epoch_iterator)
        return super().get_batch_samples(self._ahead, num_batches, device)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **options: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        for name, term in (outputs.get("terms") or {}).items():
            self._terms.setdefault(name, []).append(term)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Beside the loss of the last steps what KARMA's terms were on average, before they are weighed."""
        if "loss" in logs:
            logs = logs | {name: float(torch.stack(terms).mean()) for name, terms in self._terms.items()}
            self._terms.clear()
        super().log(logs, *arguments, **options)

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        events = (train_dataset or self.train_dataset).events
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(self._batches.lengths(events), whole, self.args.seed)


def new_backbone(model: ModelArguments) -> transformers.PreTrainedConfig:
    """The configuration of a backbone that starts from nothing; a path or hub id is read as it is."""
    if model.backbone not in transformers.CONFIG_MAPPING:
        return AutoConfig.from_pretrained(model.backbone)
    encoder, decoder = model.layers
    kind = transformers.CONFIG_MAPPING[model.backbone]
    common: dict[str, Any] = {"d_model": model.width, "pad_token_id": QueryTokenizer.pad}
    if hasattr(kind(), "d_ff"):  # the T5 family
        sizes = {"num_layers": encoder, "num_decoder_layers": decoder, "num_heads": model.heads}
        return kind(
            **common, **sizes, d_ff=model.feed_forward, d_kv=model.width // model.heads, dropout_rate=model.dropout
        )
    return kind(
        **common,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=model.heads,
        decoder_attention_heads=model.heads,
        encoder_ffn_dim=model.feed_forward,
        decoder_ffn_dim=model.feed_forward,
        dropout=model.dropout,
        activation_function="relu",
        max_position_embeddings=256,
        bos_token_id=QueryTokenizer.begin,
        eos_token_id=None,
        decoder_start_token_id=QueryTokenizer.begin,
        forced_eos_token_id=None,
    )


def reads(model: ModelArguments) -> ViewSettings:
    """What is read of the user; a `UserError` for an unknown name."""
    return ViewSettings(
        history=model.history,
        views=tuple(model.views),
        uid=model.uid,
        past_queries=model.past_queries,
        long=model.long,
        long_tokens=model.long_tokens,
    )


def periods(corpus: Corpus, split: NDArray[np.int8], recent: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The training events to learn to predict, of the last `recent` share; and those before them, of every kind."""
    training, learnt = split == TRAIN, late(corpus, split, recent)
    asked = corpus.kind == target_kind(corpus)
    return np.flatnonzero(training & learnt & asked), np.flatnonzero(training & ~learnt)


def train(model_args: ModelArguments, args: SftArguments, progress: Progress | None = None) -> None:
    """Train a generator on the run's training events into `models/STAGE`; an interrupted training goes on."""
    keep_freed_memory()
    user, backbone = reads(model_args), new_backbone(model_args)
    run = Run.open(model_args.run)
    target = run.folder / "models" / model_args.stage
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    split = make_split(corpus, run.settings.split)
    events, before = periods(corpus, split, model_args.recent)
    held_out = sample_requests(corpus, split, VALID, model_args.valid_requests, args.seed)
    if len(events) < args.train_batch_size * args.world_size:
        raise UserError(
            "fewer training events than one batch",
            place=run.folder / "corpus",
            value=len(events),
            remedy="lower --per_device_train_batch_size",
        )
    log.info("preparing %s training events", f"{len(events):,}")
    encoder = load_text_encoder(run.settings.encoder)
    positions = getattr(backbone, "max_position_embeddings", None)
    if positions is not None and model_args.interest:
        positions -= 1  # the last one reads what the user wants next
    builder = ContextBuilder.fit(
        corpus,
        split,
        before,
        encoder,
        table.codes,
        model_args.slots,
        args.seed,
        reads=user,
        positions=positions,
        run=run,
        offers=model_args.offers,
    )
    karma = model_args.interest or model_args.generate
    vectors = frozen_vectors(run, len(corpus.items)) if model_args.regress else None
    told = Told(builder, events, split == TRAIN, vectors) if karma else None
    batches = TrainingBatches(builder, np.concatenate([events, held_out.event]), told)

    transformers.set_seed(args.seed)
    config = GeneratorConfig(
        backbone=backbone,
        text_vocabulary=len(builder.tokenizer),
        begin_token=QueryTokenizer.begin,
        level_sizes=list(table.level_sizes),
        history_features=builder.slot_features,
        content=builder.selector.texts.vectors.shape[1] if model_args.content else 0,
        taste=builder.selector.taste.shape[1] if model_args.content else 0,
        spelling=model_args.spelling,
        priors=len(HALF_LIVES) if model_args.prior else 0,
        offers=len(builder.offers.kinds),
        copy=model_args.copy,
        plain_loss=model_args.plain_loss,
        views=builder.views.sizes() or None,
        interest=model_args.interest,
        action=model_args.action,
        generate=model_args.generate,
        reconstruct=model_args.reconstruct,
        regress=model_args.regress,
        soft_tokens=model_args.soft_tokens,
        features=0 if vectors is None else vectors.shape[1],
        hard_negatives=model_args.hard_negatives,
    )
    model = Generator(config).bind(builder.catalogue(table.index()))
    trainer = SftTrainer(
        model=model,
        args=args,
        train_dataset=Events(events),
        eval_dataset=Events(held_out.event),
        batches=batches,
    )
    if progress is not None:  # the caller shows what happens
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))
    checkpoints = Path(str(args.output_dir))
    # an interrupted training with the same settings and the same semantic IDs goes on
    basis = {"model": config.to_dict(), "context": builder.settings, "sid": stamps(run.folder / "sid")}
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis))
    builder.views.room.report("training")
    model.drop_decoders()
    builder = builder.knowing(np.flatnonzero(split == TRAIN))
    reader = GeneratorReader(table, builder, model)
    retriever = Retriever(corpus, table, reader)
    found = summary(ranks_together(retriever, held_out))
    if trainer.is_world_process_zero():
        trainer.log(found)
        if reader.interest is not None:
            trainer.log(interest_validation(retriever, held_out))
            found, model.config.interest_share = modes.validation(reader, held_out)
            trainer.log({f"valid_{name}": found[name] for name in ("recall@10 both", "ndcg@10 both")})
        builder.views.room.report("validation")
        builder.save(target)
        model.save_pretrained(target)
        write_json(target / "log_history.json", trainer.state.log_history)
        clear_checkpoints(checkpoints)


def train_run(run: Run, progress: Progress) -> None:
    """The training step of a run: the YAML that its settings name, or the defaults, with the run's seed."""
    config = [] if run.settings.sft is None else ["--config", run.settings.sft]
    arguments = [*config, "--run", str(run.folder), "--stage", "sft", "--seed", str(run.settings.seed)]
    train_together("sft", arguments, run.settings.processes, progress)


def training_of(arguments: list[str]) -> tuple[Callable[..., None], Any, Any]:
    """The training that these arguments describe, of a generator or with `model: language` of a language model: a
    callable, and what to call it with.

    Raises:
        UserError: an option that does not exist, or options that do not go together.
    """
    if option("model", "generator", arguments) == "language":
        return language.train, *language.parse(arguments)
    return train, *parse(arguments)


def parse(arguments: list[str] | None = None) -> tuple[ModelArguments, SftArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist, or options that do not go together.
    """
    model_args, args = parse_options((ModelArguments, SftArguments), __doc__, arguments)
    check_weights(model_args)
    return model_args, args


def main() -> None:
    """The entry point of `accelerate launch training/sft.py`."""
    if option("model", "generator") == "language":
        language.main()
    else:
        run_script(parse, train)


if __name__ == "__main__":
    main()
