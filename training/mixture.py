"""Stages and their task mixtures: which examples a training sees in which order, and the tensors of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from onesearch.errors import UserError, unknown
from onesearch.ragged import Ragged
from training.material import Example, Material
from training.objective import IGNORED
from training.tasks import Task, find_task, missing_columns

MEGABATCH: Final = 16
"""Batches whose examples are sorted by length together."""
ROWS: Final = 2**40
"""An example is a number: its task times this, and its row."""
KEYS: Final = ("name", "steps", "tasks")


@dataclass(frozen=True)
class Stage:
    """One stage: so many steps with examples of these tasks, drawn in proportion to their weights."""

    name: str
    steps: int
    tasks: tuple[tuple[Task, float], ...]


def read_stages(given: object, place: str) -> tuple[Stage, ...]:
    """The stages of a YAML: a list of mappings with `name`, `steps` and `tasks`, a mapping of task to weight.

    Raises:
        UserError: something else, or an unknown task.
    """
    if not isinstance(given, list) or not given:
        raise UserError("no stages", place=place, value=given, remedy="give a list, each with name, steps and tasks")
    stages = []
    for number, one in enumerate(given, 1):
        at = f"{place}: stage {number}"
        if not isinstance(one, Mapping):
            raise UserError("a stage is a mapping", place=at, value=one, remedy=f"give {', '.join(KEYS)}")
        for key in one:
            if key not in KEYS:
                raise unknown("unknown key", key, KEYS, at)
        steps, tasks = one.get("steps"), one.get("tasks")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise UserError("a stage needs steps, 1 or more", place=at, value=steps)
        if not isinstance(tasks, Mapping) or not tasks:
            raise UserError("a stage needs tasks", place=at, value=tasks, remedy="such as {personalised: 1}")
        for name, weight in tasks.items():
            if not isinstance(weight, int | float) or isinstance(weight, bool) or weight <= 0:
                raise UserError("a weight is a number above 0", place=f"{at}: {name}", value=weight)
        named = tuple((find_task(name, at), float(weight)) for name, weight in tasks.items())
        stages.append(Stage(str(one.get("name", number)), steps, named))
    return tuple(stages)


def check_stages(stages: Sequence[Stage], data: Material) -> None:
    """Raises a `UserError` where a stage's task has nothing to be made of; the missing columns are named."""
    for stage in stages:
        for task, _ in stage.tasks:
            place = f"stage {stage.name}: task {task.name}"
            if missing := missing_columns(task, data.corpus):
                remedy = "give the log these columns, or leave the task out"
                raise UserError("the corpus has no values in", place=place, value=", ".join(missing), remedy=remedy)
            if task.query_sids:
                data.query_sids(data.training_queries[:1])
            if not len(task.rows(data)):
                raise UserError(f"there are no {task.over}", place=place, remedy="leave the task out")


class Numbers(Dataset[int]):
    """`total` examples, each known by the number that a sampler or a list of them gives; the collator does the rest."""

    def __init__(self, total: int, numbers: NDArray[np.int64] | None = None) -> None:
        self._total, self._numbers = total, numbers

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, place: int) -> int:
        return place if self._numbers is None else int(self._numbers[place])


class Maker:
    """Makes examples of their numbers.

    A sampler makes them to know their lengths; they are kept until their batch is put together.
    """

    def __init__(self, tasks: Sequence[Task], data: Material) -> None:
        self.tasks, self.data = tasks, data
        # a loader is a batch ahead at most, and a mixture makes the next while those are read
        self._kept: deque[tuple[NDArray[np.int64], Example]] = deque(maxlen=3)

    def prepare(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Make n examples that will be asked for soon; returns the (n,) tokens that each reads and writes."""
        distinct, place = np.unique(numbers, return_inverse=True)
        example = self._made(distinct)
        self._kept.append((distinct, example))
        return (example.prompt.lengths + example.answer.lengths)[place]

    def __call__(self, numbers: NDArray[np.int64]) -> Example:
        """n examples, in this order."""
        for distinct, example in reversed(tuple(self._kept)):  # another thread may be adding to it
            place = np.minimum(np.searchsorted(distinct, numbers), len(distinct) - 1)
            if (distinct[place] == numbers).all():
                return Example(example.prompt.take(place), example.answer.take(place))
        return self._made(numbers)

    def _made(self, numbers: NDArray[np.int64]) -> Example:
        kind, row = np.divmod(numbers, ROWS)
        order, examples = [], []
        for task in np.unique(kind).tolist():
            place = np.flatnonzero(kind == task)
            order.append(place)
            examples.append(self.tasks[task].build(self.data, row[place]))
        back = np.argsort(np.concatenate(order), kind="stable")
        return Example(
            Ragged.stack([one.prompt for one in examples]).take(back),
            Ragged.stack([one.answer for one in examples]).take(back),
        )


@dataclass(frozen=True)
class Drawn:
    """Numbers (n,) of the examples of a megabatch, and where the order of its batches comes from."""

    numbers: NDArray[np.int64]
    random: np.random.Generator


class Mixture(Sampler[int]):
    """The examples of all stages, batch after batch; those of one batch have similar lengths.

    The order depends on the seed and the *global* batch size only, so that two processes with half the batch each see
    what one process sees. A task runs through all its rows before one comes again.

    Args:
        batch: examples a step.
    """

    def __init__(self, stages: Sequence[Stage], maker: Maker, batch: int, seed: int) -> None:
        self.stages, self.maker, self.batch, self.seed = stages, maker, batch, seed

    def __len__(self) -> int:
        return self.batch * sum(stage.steps for stage in self.stages)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the examples. While a megabatch is learnt from, the next one's examples are made."""
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[tuple[Future[NDArray[np.int64]], Drawn]] = deque()
            for drawn in self._drawn():
                ahead.append((pool.submit(self.maker.prepare, drawn.numbers), drawn))
                if len(ahead) > 1:
                    yield from self._ordered(*ahead.popleft())
            for made, drawn in ahead:
                yield from self._ordered(made, drawn)

    def _ordered(self, made: Future[NDArray[np.int64]], drawn: Drawn) -> list[int]:
        """A megabatch as batches of similar lengths, the batches in random order."""
        numbers = drawn.numbers[np.argsort(made.result(), kind="stable")].reshape(-1, self.batch)
        ordered: list[int] = numbers[drawn.random.permutation(len(numbers))].ravel().tolist()
        return ordered

    def _drawn(self) -> Iterator[Drawn]:
        """The megabatches of all stages."""
        seen = [0] * len(self.maker.tasks)
        orders: dict[tuple[int, int], NDArray[np.int64]] = {}
        for number, stage in enumerate(self.stages):
            places = [self.maker.tasks.index(task) for task, _ in stage.tasks]
            weights = np.array([weight for _, weight in stage.tasks])
            for first in range(0, stage.steps, MEGABATCH):
                random = np.random.default_rng((self.seed, number, first))
                batches = min(MEGABATCH, stage.steps - first)
                drawn = random.choice(len(places), batches * self.batch, p=weights / weights.sum())
                numbers = np.empty(len(drawn), np.int64)
                for one, task in enumerate(places):
                    chosen = drawn == one
                    rows = self._next(task, int(chosen.sum()), seen, orders)
                    numbers[chosen] = task * ROWS + rows
                yield Drawn(numbers, random)

    def _next(
        self, task: int, number: int, seen: list[int], orders: dict[tuple[int, int], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        rows = self.maker.tasks[task].rows(self.maker.data)
        place = seen[task] + np.arange(number)
        seen[task] += number
        found = np.empty(number, np.int64)
        for cycle in np.unique(place // len(rows)).tolist():
            if (task, cycle) not in orders:
                orders.pop((task, cycle - 2), None)
                orders[task, cycle] = np.random.default_rng((self.seed, task, cycle, 1)).permutation(len(rows))
            inside = place // len(rows) == cycle
            found[inside] = rows[orders[task, cycle][place[inside] % len(rows)]]
        return found


class Collator:
    """Makes tensors of examples.

    Args:
        begin: the decoder's first token; None where there is no decoder.
        keywords: whether a teacher's prompts, with keywords, are made too.
    """

    def __init__(self, maker: Maker, pad: int, begin: int | None, keywords: bool = False) -> None:
        self.maker, self.pad, self.begin, self.keywords = maker, pad, begin, keywords

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(numbers, np.int64)
        example = self.maker(chosen)
        batch = self._tensors(example)
        if self.keywords:
            taught = self._tensors(Example(self._with_keywords(chosen, example.prompt), example.answer))
            batch |= {
                "teacher_ids": taught["input_ids"],
                "teacher_mask": taught["attention_mask"],
                "teacher_labels": taught["labels"],
            }
        return batch

    def _tensors(self, example: Example) -> dict[str, Tensor]:
        prompt, answer = example.prompt, example.answer
        if self.begin is not None:
            read, used = prompt.padded(self.pad)
            written, _ = _shifted(answer, self.begin).padded(self.pad)
            arrays: dict[str, Any] = {"decoder_input_ids": written, "labels": answer.padded(IGNORED)[0]}
        else:
            whole = Ragged.side_by_side([prompt, answer])
            ids, used = whole.padded(self.pad)
            place = np.arange(ids.shape[1])
            answered = used & (place >= prompt.lengths[:, None])
            labels = np.where(answered, ids, IGNORED)
            # Each label is said by the token before it, and nothing follows the last one.
            read, used, arrays = ids[:, :-1], used[:, 1:], {"labels": labels[:, 1:]}
        arrays |= {"input_ids": read, "attention_mask": used.astype(np.int64)}
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}

    def _with_keywords(self, numbers: NDArray[np.int64], prompt: Ragged) -> Ragged:
        """The prompts of personalised examples with keywords in them; the others as they are."""
        kind, row = np.divmod(numbers, ROWS)
        personal = np.array([task.name == "personalised" for task in self.maker.tasks])[kind]
        place = np.flatnonzero(personal)
        if not len(place):
            return prompt
        events, data = row[place], self.maker.data
        keywords = data.keyword_texts(data.wishes(events))
        with_them = data.writer.write(data.requests(events), keywords).tokens
        order = np.arange(len(prompt))
        order[place] = len(prompt) + np.arange(len(place))
        return Ragged.stack([prompt, with_them]).take(order)


def _shifted(answer: Ragged, begin: int) -> Ragged:
    """What the decoder reads: the begin token, then the answer without its last token."""
    both = Ragged.side_by_side([Ragged.repeated([begin], len(answer)), answer])
    kept = np.ones(len(both.ids), bool)
    kept[both.offsets[1:] - 1] = False
    return Ragged(both.ids[kept], answer.offsets)
