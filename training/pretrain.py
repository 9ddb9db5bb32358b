"""Item embeddings, pretrained generatively: what does a user take next?

    accelerate launch training/pretrain.py --run runs/demo
    accelerate launch training/reward.py --config configs/demo/reward.yaml --items pretrained

Stage 1 of GPSD (https://arxiv.org/abs/2506.03699): a causal Transformer over users' histories foretells the next item
(softmax over sampled items) and its category (softmax over all), of unit vectors with a temperature. Stage 2 is
`training/reward.py`, which loads the item embeddings alone and freezes them.

Ours: the history is cut into windows of the training period; the sampled items are drawn as often as they are bought
and shared by a batch, each logit less the log of how often it is drawn, and an item that is the answer is no negative;
a history position reads its item and its category. `models/STAGE/items.safetensors` of the run gets (N, W) unit
vectors.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import LlamaConfig, LlamaModel

from onesearch.corpus import TRAIN, Corpus, make_split
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError
from onesearch.files import atomic_path, write_json
from onesearch.reward.levels import leaf_categories
from onesearch.run import Run, stamps
from training.batches import Events, SimilarLengths
from training.launch import (
    UNNAMED,
    Guarded,
    clear_checkpoints,
    keep_freed_memory,
    last_checkpoint,
    parse_options,
    run_script,
)
from training.sft import SftArguments

log = logging.getLogger(__name__)


@dataclass
class PretrainArguments:
    """What is learnt from, and the size of the model."""

    run: str = field(default="runs/demo", metadata={"help": "Run folder with a corpus."})
    stage: str = field(default="items", metadata={"help": "The embeddings are written to models/STAGE of the run."})
    width: int = field(default=64, metadata={"help": "W of the embeddings, and of the Transformer."})
    layers: int = field(default=2, metadata={"help": "Layers of the Transformer."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    positions: int = field(default=64, metadata={"help": "Events of a window."})
    windows: int = field(default=20_000, metadata={"help": "Windows at most."})
    negatives: int = field(default=1024, metadata={"help": "Items drawn for the softmax over items."})
    temperature: float = field(default=0.07, metadata={"help": "Of the cosines."})

    def check(self) -> None:
        """Stop at values that cannot be meant, before data is touched."""
        for name in ("width", "layers", "heads", "positions", "windows", "negatives"):
            if getattr(self, name) < 1:
                raise UserError("at least one is needed", place=name, value=getattr(self, name))
        if self.width % (2 * self.heads):
            remedy = "choose a multiple of twice --heads"
            raise UserError("the heads do not divide the width", place="width", value=self.width, remedy=remedy)
        if self.temperature <= 0:
            raise UserError("the temperature is positive", place="temperature", value=self.temperature)


@dataclass
class PretrainTrainingArguments(SftArguments):
    """`transformers.TrainingArguments` with the defaults of the demo."""

    output_dir: str | None = field(default=None, metadata={"help": "Checkpoints; by default models/STAGE of the run."})
    learning_rate: float = 3e-3
    per_device_train_batch_size: int = 64
    warmup_steps: float = 30
    eval_strategy: str = "no"
    save_steps: float = 200


class NextItem(nn.Module):
    """Foretells the next item and its category.

    Args:
        category: (N,) of the items, from 0.
        counts: (N,) how often an item is drawn as a negative.
    """

    category: Tensor
    counts: Tensor

    def __init__(self, options: PretrainArguments, category: Tensor, counts: Tensor) -> None:
        super().__init__()
        width = options.width
        self.items = nn.Embedding(len(category), width)
        self.categories = nn.Embedding(int(category.max()) + 1, width)
        for embedding in (self.items, self.categories):
            nn.init.normal_(embedding.weight, std=0.05)
        sizes = {"num_hidden_layers": options.layers, "num_attention_heads": options.heads}
        config = LlamaConfig(
            vocab_size=1, hidden_size=width, intermediate_size=2 * width, **sizes, max_position_embeddings=512
        )
        self.body = LlamaModel(config)
        self.of_item, self.of_category = nn.Linear(width, width), nn.Linear(width, width)
        self.register_buffer("category", category, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.negatives, self.scale = options.negatives, 1 / options.temperature

    def forward(self, history: Tensor) -> dict[str, Tensor]:
        """(B, T) items, -1 behind the end -> the loss, and its two parts."""
        there = history >= 0
        item = history.clamp(min=0)
        read = self.items(item) + self.categories(self.category[item])
        states = self.body(inputs_embeds=read, attention_mask=there.long()).last_hidden_state
        told = there[:, 1:]
        states, answer = states[:, :-1][told], item[:, 1:][told]
        drawn = torch.multinomial(self.counts, self.negatives, replacement=True)
        odds = (self.counts / self.counts.sum()).log()
        asked = F.normalize(self.of_item(states), dim=-1) * self.scale
        right = (asked * F.normalize(self.items(answer), dim=-1)).sum(-1) - odds[answer]
        others = asked @ F.normalize(self.items(drawn), dim=-1).T - odds[drawn]
        others = others.masked_fill(drawn == answer.unsqueeze(1), torch.finfo(others.dtype).min)
        of_item = -torch.cat([right.unsqueeze(1), others], 1).log_softmax(1)[:, 0].mean()
        asked = F.normalize(self.of_category(states), dim=-1) * self.scale
        logits = asked @ F.normalize(self.categories.weight, dim=-1).T
        of_category = F.cross_entropy(logits, self.category[answer])
        return {"loss": of_item + of_category, "item": of_item.detach(), "category": of_category.detach()}


class Windows:
    """Cuts users' choices of the training period into windows, and collates numbers of windows."""

    def __init__(self, corpus: Corpus, split: NDArray[np.int8], positions: int) -> None:
        chosen = np.flatnonzero((split == TRAIN) & (corpus.kind > EVENT_KINDS.index("impression")))
        self._item, user = corpus.item[chosen].astype(np.int64), corpus.user[chosen]
        begin = np.searchsorted(user, np.arange(len(corpus.users)))
        self._place = np.arange(len(chosen)) - begin[user]
        self.starts = np.flatnonzero(self._place % positions == 0)
        self._ends = np.append(self.starts[1:], len(chosen))
        self.starts, self._ends = (one[self._ends - self.starts > 1] for one in (self.starts, self._ends))
        self._positions = positions

    def __len__(self) -> int:
        return len(self.starts)

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(numbers, np.int64)
        place = self.starts[chosen][:, None] + np.arange(self._positions)
        inside = place < self._ends[chosen][:, None]
        items = np.where(inside, self._item[np.minimum(place, len(self._item) - 1)], -1)
        return {"history": torch.from_numpy(items)}


class PretrainTrainer(Guarded):
    """A `Trainer` whose batches are the same ones however many processes there are."""

    def _get_train_sampler(self, train_dataset: Events | None = None) -> Sampler[int]:
        whole = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return SimilarLengths(np.zeros(len(self.train_dataset), np.int64), whole, self.args.seed)


def pretrain(options: PretrainArguments, args: PretrainTrainingArguments) -> None:
    """Pretrain the items of a run into `models/STAGE`; an interrupted training goes on.

    Raises:
        UserError: the log has fewer windows than one batch.
    """
    options.check()
    keep_freed_memory()
    run = Run.open(options.run)
    target = run.folder / "models" / options.stage
    if args.output_dir == UNNAMED:
        args.output_dir = str(target)
    corpus = Corpus.load(run.folder / "corpus")
    split = make_split(corpus, run.settings.split)
    windows = Windows(corpus, split, options.positions)
    count = min(len(windows), options.windows)
    if count < args.train_batch_size * args.world_size:
        remedy = "lower --per_device_train_batch_size"
        raise UserError("fewer windows than one batch", place=run.folder / "corpus", value=count, remedy=remedy)
    numbers = np.sort(np.random.default_rng(args.seed).permutation(len(windows))[:count])
    category = leaf_categories(corpus)
    category -= category.min(initial=0)
    chosen = (split == TRAIN) & (corpus.kind > EVENT_KINDS.index("impression"))
    counts = np.bincount(corpus.item[chosen], minlength=len(category)).astype(np.float32)
    transformers.set_seed(args.seed)
    model = NextItem(options, torch.from_numpy(category), torch.from_numpy(counts) + 0.5)
    trainer = PretrainTrainer(model=model, args=args, data_collator=windows, train_dataset=Events(numbers))
    basis: dict[str, Any] = {"options": {name: value for name, value in asdict(options).items() if name != "run"}}
    basis["corpus"] = stamps(run.folder / "corpus/corpus.json")
    checkpoints = Path(str(args.output_dir))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_checkpoint(checkpoints, trainer, basis))
    if trainer.is_world_process_zero():
        with atomic_path(target / "items.safetensors") as path:
            save_file({"items": F.normalize(model.items.weight.detach(), dim=-1).contiguous()}, path)
        write_json(target / "log_history.json", trainer.state.log_history)
        clear_checkpoints(checkpoints)


def parse(arguments: list[str] | None = None) -> tuple[PretrainArguments, PretrainTrainingArguments]:
    """Arguments of the command line over those of the YAML over the defaults.

    Raises:
        UserError: the YAML has an option that does not exist.
    """
    options, args = parse_options((PretrainArguments, PretrainTrainingArguments), __doc__, arguments)
    return options, args


def main() -> None:
    """The entry point of `accelerate launch training/pretrain.py`."""
    run_script(parse, pretrain)


if __name__ == "__main__":
    main()
