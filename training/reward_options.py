"""Options of the training of a reward model."""

from __future__ import annotations

from dataclasses import dataclass, field

from onesearch.errors import UserError, unknown
from training.lists import DRAWN
from training.sft import SftArguments


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
        default_factory=list,
        metadata={"help": "Views that are read besides: uid, queries, long, profile, time, place, device."},
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


def _known(place: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown("unknown name", value, known, place)
