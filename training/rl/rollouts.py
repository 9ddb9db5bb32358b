"""Rollouts: what a policy answers, to be rewarded. All of it comes from the project's own search.

- `distinct`: G different items, drawn without replacement; `sample`: G independent draws; `beam`: the G best.
- `list`: G different beginnings of a semantic ID, and the list of the best k items below each.
- `keywords`: G keyword texts of a language model, and the list of the best k items given each.

The last two are list-reward GRPO's (see `training.rl.lists`). Random numbers depend on the seed, the step and the
event, so that a request's samples are the same in whichever process it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onesearch.corpus import Requests
from onesearch.noise import hashed
from onesearch.ragged import Ragged
from onesearch.search import beam_search, codes_of, sample, sample_without_replacement
from onesearch.search.lists import lists_below
from training.rl.policies import GeneratorPolicy, LanguagePolicy

KINDS: Final = ("distinct", "sample", "beam", "list", "keywords")
LISTED: Final = ("list", "keywords")
DISTINCT: Final = ("distinct", "beam", "list")
"""Those whose samples are different."""


@dataclass(frozen=True)
class Rollout:
    """G samples for each of B requests.

    Attributes:
        inputs: what the policy read to say them.
        codes: (B, G, l) what it said. used: (B, G, l) bool, which of it counts.
        items: (B, G) int64 items, or (B, G, k) lists of them; -1 in empty places.
        log_prob: (B, G) of what was sampled when it was.
        words: whether the codes are tokens of text.
        texts: B * G of them, where they are.
    """

    inputs: Mapping[str, Any]
    codes: Tensor
    used: Tensor
    items: NDArray[np.int64]
    log_prob: Tensor
    words: bool = False
    texts: Sequence[str] = ()

    @property
    def chance(self) -> Tensor:
        """(B, G) how likely each sample is among those of its group; 0 where there is none."""
        return self.log_prob.masked_fill(~self.there, -torch.inf).softmax(-1).nan_to_num(0)

    @property
    def there(self) -> Tensor:
        """(B, G) bool, which samples exist."""
        return self.used.any(-1)


@dataclass(frozen=True)
class Rolling:
    """How to roll out.

    Attributes:
        kind: see the module. group: G. temperature: of the draws.
        beams: beam width. length: k of lists. depth: codes of a beginning. follow: after a beginning, whether its
            "best" item's other codes count as said too, or "nothing" does.
        words: at most so many tokens of a keyword text.
    """

    kind: str = "distinct"
    group: int = 8
    temperature: float = 1.0
    beams: int = 32
    length: int = 10
    depth: int = 1
    follow: str = "nothing"
    words: int = 12


def roll_out(
    policy: GeneratorPolicy | LanguagePolicy, requests: Requests, rolling: Rolling, seed: int, step: int
) -> Rollout:
    """Sample answers to B requests; `seed` and `step` tell the random numbers from those of other rollouts."""
    keys = hashed(torch.from_numpy(requests.event), seed, step).to(policy.reader.device)
    if rolling.kind == "keywords":
        return _keywords(policy, requests, rolling, keys)
    inputs = policy.encode(requests)
    scorer: Any = policy.scorer(inputs)
    group, temperature = rolling.group, rolling.temperature
    if rolling.kind == "list":
        found = lists_below(scorer, rolling.depth, group, rolling.length, temperature, random=keys)
        codes = found.best if rolling.follow == "best" else found.codes
        items, there, log_prob = found.items, found.there, found.log_prob
    else:
        if rolling.kind == "beam":
            one: Any = beam_search(scorer, max(rolling.beams, group), group)
        else:
            draw: Any = sample if rolling.kind == "sample" else sample_without_replacement
            one = draw(scorer, group, temperature, random=keys)
        codes, items, there = codes_of(scorer.index, one.nodes), one.items, one.items >= 0
        log_prob = one.log_prob
    used = there.unsqueeze(-1).expand(codes.shape)
    # what comes from a search cannot take part in gradients; copies can
    return Rollout(inputs, codes.clone(), used.clone(), items.cpu().numpy().astype(np.int64), log_prob.clone())


def _keywords(policy: GeneratorPolicy | LanguagePolicy, requests: Requests, rolling: Rolling, keys: Tensor) -> Rollout:
    if not isinstance(policy, LanguagePolicy):
        raise TypeError("only a language model can say keywords")
    inputs = policy.encode(requests, "Keywords:")
    tokens, used = policy.say(inputs, rolling.group, rolling.words, keys)
    batch, group, _ = tokens.shape
    said = Ragged.of([row[there].tolist() for row, there in zip(tokens.flatten(0, 1), used.flatten(0, 1), strict=True)])
    repeated = requests.take(np.repeat(np.arange(batch), group))
    scorer: Any = policy.scorer(policy.encode(repeated, keywords=policy.without_end(said)))
    found = beam_search(scorer, max(rolling.beams, rolling.length), rolling.length)
    items = found.items.view(batch, group, rolling.length).cpu().numpy().astype(np.int64)
    alike = torch.zeros(batch, group, device=tokens.device)  # draws, and so as frequent as they are likely
    return Rollout(inputs, tokens, used, items, alike, words=True, texts=policy.spelt(said))
