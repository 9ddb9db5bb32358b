"""Rewards of generated items. A reward is a function with the signature that TRL calls:

    def reward(prompts, completions, completion_ids, **columns) -> list[float]

`prompts` are n queries, `completions` the texts of n semantic IDs and `completion_ids` their codes; `columns` are lists
of n values of each: `item_id` and `target_id` (what was generated, and what was bought), `item` and `target` (the
same as row numbers of the catalogue), `user_id` (None for nobody known) and `event` (row number of the log). Of lists
that the log has shown there is also `kind` (the strongest event with the item, as a position in `EVENT_KINDS`), and
with `propensity` also `weight` (the inverse chance that it was looked at). A function of one's own is named
`package.module:function` in the YAML; these are named shortly:

- `bought`: 1 for the item that was bought.
- `prefix`: which share of the target's codes, from the first on, the item has too.
- `category`: which share of the target's category path, from the root on, the item has too.
- `interaction`: what the user did with the item in answer to this search: 1 for a purchase, .75 for a click, .25
  where it was only shown (OneSearch-V2 counts an order more than a click; the numbers are ours). What is above being
  shown needed a look, so that this part counts `weight` times.
- `model`: what the reward model of the run says (`training/reward.py`).

Rewards add up by their weights.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.corpus import Corpus, Requests
from onesearch.corpus.schema import EVENT_KINDS
from onesearch.errors import UserError, unknown
from onesearch.reward import RewardModel
from onesearch.reward.levels import category_prefixes, shared_category
from onesearch.run import Run
from onesearch.sid import SidTable

log = logging.getLogger(__name__)

WORTH: Final = {"impression": 0.25, "click": 0.75, "cart": 0.9, "purchase": 1.0}
PATIENCE: Final = 20
"""Batches in a row without two different rewards, after which it is told that there is no signal."""


RewardFunction = Callable[..., Sequence[float] | NDArray[np.floating]]
"""Called by names alone, see the module."""


@dataclass(frozen=True)
class Known:
    """What the rewards of this project may look at."""

    run: Run
    corpus: Corpus
    table: SidTable


def _bought(known: Known) -> RewardFunction:
    return lambda item, target, **_: (item == target).astype(np.float64)


def _prefix(known: Known) -> RewardFunction:
    codes = known.table.codes
    return lambda item, target, **_: np.cumprod(codes[item] == codes[target], axis=1).mean(1)


def _category(known: Known) -> RewardFunction:
    path = category_prefixes(known.corpus)
    return lambda item, target, **_: shared_category(path[item], path[target])


def _interaction(known: Known) -> RewardFunction:
    corpus = known.corpus
    worth = np.array([WORTH[kind] for kind in EVENT_KINDS])
    number = len(corpus.items)
    search = corpus.searches(np.arange(len(corpus.user)))
    groups, group = np.unique(search, return_inverse=True)
    pair = group * number + corpus.item
    order = np.lexsort((corpus.kind, pair))  # of several events with one item the strongest is the last
    last = np.append(pair[order][1:] != pair[order][:-1], True)
    pairs, kinds = pair[order][last], corpus.kind[order][last]

    def interaction(
        item: NDArray[np.int64],
        event: NDArray[np.int64],
        kind: NDArray[np.int64] | None = None,
        weight: NDArray[np.floating] | float = 1.0,
        **_: Any,
    ) -> NDArray[np.floating]:
        if kind is None:
            asked = np.searchsorted(groups, search[event]) * number + item
            place = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
            kind = np.where(pairs[place] == asked, kinds[place], -1)
        shown = WORTH["impression"]
        return np.where(kind >= 0, shown + (worth[kind] - shown) * weight, 0.0)

    return interaction


def _model(known: Known) -> RewardFunction:
    reward_model = RewardModel.load(known.run, corpus=known.corpus)

    def model(item: NDArray[np.int64], event: NDArray[np.int64], **_: Any) -> NDArray[np.floating]:
        requests, place = np.unique(event, return_inverse=True)  # each has as many items as the others
        order = np.argsort(place, kind="stable")
        judged = reward_model.judge(Requests.of(known.corpus, requests), item[order].reshape(len(requests), -1))
        found = np.empty(len(item), np.float32)
        found[order] = judged.reward.reshape(-1)
        return found

    return model


REWARDS: Final[dict[str, Callable[[Known], RewardFunction]]] = {
    "bought": _bought,
    "prefix": _prefix,
    "category": _category,
    "interaction": _interaction,
    "model": _model,
}
"""The rewards that a YAML names shortly."""


def find_reward(name: str, known: Known) -> RewardFunction:
    """A reward by its name or by its place, `package.module:function`.

    Raises:
        UserError: there is none.
    """
    if name in REWARDS:
        return REWARDS[name](known)
    if ":" in name:
        module, function = name.split(":", 1)
        try:
            found: RewardFunction = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError("no such reward", place="rewards", value=name, remedy=str(error)) from error
        return found
    raise unknown(
        "no such reward", name, REWARDS, "rewards", f"known: {', '.join(REWARDS)}, or package.module:function"
    )


@dataclass(frozen=True)
class Earned:
    """total (B, G) the weighted sum, and each reward (B, G) by its name."""

    total: NDArray[np.float32]
    each: dict[str, NDArray[np.float32]]


class Rewards:
    """Several rewards, weighed.

    Args:
        weights: one for each name; by default 1.

    Raises:
        UserError: an unknown reward, or another number of weights.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float] | None, known: Known) -> None:
        if not names:
            raise UserError("no reward", place="rewards", remedy=f"name some of {', '.join(REWARDS)}")
        weights = [1.0] * len(names) if weights is None else weights
        if len(weights) != len(names):
            remedy = f"give {len(names)}"
            raise UserError("not one weight for each reward", place="reward_weights", value=weights, remedy=remedy)
        self._functions = {name: find_reward(name, known) for name in names}
        self._weights, self._known = weights, known
        self._users = known.corpus.users["user_id"]
        self._still = dict.fromkeys(names, 0)

    def __call__(
        self, requests: Requests, items: NDArray[np.integer], more: Mapping[str, NDArray[Any]] | None = None
    ) -> Earned:
        """What items (B, G) earn as answers to B requests; an item of -1, which is none, earns 0.

        Args:
            more: (B, G) further columns.

        Raises:
            UserError: a reward that is not a number, or too many or too few of them.
        """
        group = items.shape[1]
        there = items >= 0
        item = np.where(there, items, 0).reshape(-1)
        corpus, table = self._known.corpus, self._known.table
        ids = corpus.items["item_id"]
        prompts = [query for query in requests.query for _ in range(group)]
        target = np.repeat(requests.target, group)
        users = [self._users[user] if user >= 0 else None for user in requests.user.tolist() for _ in range(group)]
        names = ids[item].to_list()
        columns = {
            "item": item,
            "target": target,
            "item_id": names,
            "target_id": ids[np.maximum(target, 0)].to_list(),
            "user_id": users,
            "event": np.repeat(requests.event, group),
            **{name: values.reshape(-1) for name, values in (more or {}).items()},
        }
        completions, codes = [table.text(one) for one in item.tolist()], table.codes[item].tolist()
        each = {}
        for name, function in self._functions.items():
            values = np.asarray(
                function(prompts=prompts, completions=completions, completion_ids=codes, **columns), np.float32
            )
            self._check(name, values, prompts, names)
            each[name] = np.where(there, values.reshape(items.shape), 0).astype(np.float32)
        total = sum(weight * each[name] for name, weight in zip(each, self._weights, strict=True))
        return Earned(np.asarray(total, np.float32), each)

    def _check(self, name: str, values: NDArray[np.float32], prompts: list[str], item_ids: list[str]) -> None:
        place = f"reward {name}"
        if values.shape != (len(prompts),):
            remedy = "return one number for each prompt"
            raise UserError(f"{len(prompts)} values expected", place=place, value=values.shape, remedy=remedy)
        if not np.isfinite(values).all():
            wrong = int(np.flatnonzero(~np.isfinite(values))[0])
            where = f"{place}: item {item_ids[wrong]!r} for {prompts[wrong]!r}"
            remedy = "return a finite number, 0 for what cannot be judged"
            raise UserError("not a number", place=where, value=_spelt(values[wrong]), remedy=remedy)
        self._still[name] = 0 if values.max() > values.min() else self._still[name] + 1
        if self._still[name] == PATIENCE:
            log.warning(
                "%s gave %d batches nothing but %g: there is no signal to learn from", place, PATIENCE, values[0]
            )


def _spelt(value: float) -> str:
    return "nan" if math.isnan(value) else str(float(value))
