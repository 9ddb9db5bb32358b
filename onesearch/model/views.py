"""The views of the user as encoder positions: one module a view, `onesearch.context.views` makes what they read.

- `uid` (OneSearch, 2509.03236): the tokens of two semantic IDs, a position each.
- `queries`: a past query is one position, the mean of its tokens' embeddings with its age.
- `profile`, `time`, `place`, `device`: one position each, the sum of what is known.
- `long`, as a Q-Former (OneSearch; the block is that of BLIP-2, 2301.12597): learned queries attend to each other and
  to the means over the past, and become soft tokens.
- `long`, as LREA (2503.02542): K~ = A_k^T K W_k and V~ = A_v^T V; a query q attends to them without softmax,
  o = (q K~^T) V~. Its loss, sum relu(-a), keeps weights attention-like. Our completion: A_k and A_v have a row for each
  recency bucket; `a` are the weights that the buckets' events get in the end, (q K~^T) A_v^T; q is the mean of the
  query's tokens, since a generator has no target item to ask with; the rows of V~ are soft tokens beside o.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS: Final = 4
NON_NEGATIVE: Final = 0.1
"""Weight of LREA's loss."""


@dataclass(frozen=True)
class Words:
    """What the model knows words and codes by.

    Attributes:
        embed: the token embeddings. level_start: L tokens, the first of each level.
        asked: (B, D) mean embedding of each query's tokens.
    """

    embed: nn.Embedding
    level_start: list[int]
    asked: Tensor


@dataclass(frozen=True)
class Positions:
    """Encoder positions (B, P, D), which of them are used (B, P), and perhaps a loss () beside the model's own."""

    states: Tensor
    used: Tensor
    loss: Tensor | None = None


class Uid(nn.Module):
    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.which = nn.Embedding(2, width)

    def forward(self, words: Words, uid_codes: Tensor) -> Positions:
        """uid_codes: (B, 2, L) int64, -1 where there is no such past."""
        starts = torch.tensor(words.level_start[: uid_codes.shape[2]], device=uid_codes.device)
        states = words.embed(uid_codes.clamp(min=0) + starts) + self.which.weight[:, None]
        return Positions(states.flatten(1, 2), (uid_codes >= 0).flatten(1, 2))


class Queries(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.age = nn.Linear(1, width)

    def forward(
        self, words: Words, past_query_ids: Tensor, past_query_weights: Tensor, past_query_age: Tensor
    ) -> Positions:
        """past_query_ids, past_query_weights: (B, n, T) int64 and float. past_query_age: (B, n) float."""
        weight = past_query_weights.flatten(0, 1)
        mean = F.embedding_bag(
            past_query_ids.flatten(0, 1), words.embed.weight, per_sample_weights=weight, mode="sum"
        ).view(*past_query_age.shape, -1)
        mean = mean * getattr(words.embed, "embed_scale", 1.0)
        return Positions(mean + self.age(past_query_age.unsqueeze(-1)), past_query_weights.sum(-1) > 0)


class Profile(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.value = nn.Embedding(values, width, padding_idx=0)

    def forward(self, words: Words, profile_values: Tensor) -> Positions:
        """profile_values: (B, A) int64, 0 pads."""
        return Positions(self.value(profile_values).sum(1, keepdim=True), (profile_values > 0).any(1, keepdim=True))


class Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hour, self.weekday = nn.Embedding(24, width), nn.Embedding(7, width)

    def forward(self, words: Words, time_moment: Tensor) -> Positions:
        """time_moment: (B, 2) int64 of hour and weekday."""
        states = self.hour(time_moment[:, :1]) + self.weekday(time_moment[:, 1:])
        return Positions(states, torch.ones_like(time_moment[:, :1], dtype=torch.bool))


class QFormer(nn.Module):
    def __init__(self, width: int, tokens: int, places: int, known: int) -> None:
        super().__init__()
        self.known, self.place = nn.Linear(known + 1, width), nn.Embedding(places, width)
        self.asks = nn.Embedding(tokens, width)
        heads = HEADS if width % HEADS == 0 else 1
        self.block = nn.TransformerDecoderLayer(
            width, heads, 2 * width, dropout=0.0, activation=F.gelu, batch_first=True, norm_first=True
        )

    def forward(self, words: Words, long_means: Tensor, long_counts: Tensor) -> Positions:
        """long_means: (B, places, known). long_counts: (B, places) log(1 + events)."""
        memory = self.known(torch.cat([long_means, long_counts.unsqueeze(-1)], -1)) + self.place.weight
        empty = long_counts <= 0
        nothing = empty.all(-1, keepdim=True)  # attention over no place at all would be undefined
        asks = self.asks.weight.expand(len(memory), -1, -1)
        states = self.block(asks, memory, memory_key_padding_mask=empty & ~nothing)
        return Positions(states, ~nothing.expand(-1, asks.shape[1]))


class Lrea(nn.Module):
    def __init__(self, width: int, tokens: int, places: int, known: int) -> None:
        super().__init__()
        self.low_key = nn.Linear(places, tokens, bias=False)  # A_k
        self.low_value = nn.Linear(places, tokens, bias=False)  # A_v
        self.ask = nn.Linear(width, known, bias=False)  # W_q W_k^T
        self.value, self.token = nn.Linear(known, width, bias=False), nn.Embedding(tokens + 1, width)
        self.norm = nn.LayerNorm(width)
        self.length = nn.Linear(places, width)

    def forward(self, words: Words, long_means: Tensor, long_counts: Tensor) -> Positions:
        """long_means: (B, places, known). long_counts: (B, places) log(1 + events)."""
        flipped = long_means.transpose(1, 2)
        keys = self.low_key(flipped).transpose(1, 2)  # (B, r, known)
        values = self.value(self.low_value(flipped).transpose(1, 2))  # (B, r, D)
        score = torch.einsum("bk,brk->br", self.ask(words.asked), keys)
        attended = torch.einsum("br,brd->bd", score, values)
        states = self.norm(torch.cat([values, attended.unsqueeze(1)], 1))
        states = states + self.token.weight + self.length(long_counts).unsqueeze(1)
        filled = long_counts > 0
        weight = (score @ self.low_value.weight) * filled
        loss = NON_NEGATIVE * (-weight).relu().sum(-1).mean()
        return Positions(states, filled.any(-1, keepdim=True).expand(-1, states.shape[1]), loss)


def _long(way: str, **sizes: int) -> nn.Module:
    return {"qformer": QFormer, "lrea": Lrea}[way](**sizes)


class Place(Profile):
    def forward(self, words: Words, place_value: Tensor) -> Positions:
        """place_value: (B, 1) int64, 0 where it is unknown."""
        return super().forward(words, place_value)


class Device(Profile):
    def forward(self, words: Words, device_value: Tensor) -> Positions:
        """device_value: (B, 1) int64, 0 where it is unknown."""
        return super().forward(words, device_value)


MODULES: Final[dict[str, Any]] = {
    "uid": Uid,
    "queries": Queries,
    "long": _long,
    "profile": Profile,
    "time": Time,
    "place": Place,
    "device": Device,
}
READS: Final = {
    "uid": ("uid_codes",),
    "queries": ("past_query_ids", "past_query_weights", "past_query_age"),
    "long": ("long_means", "long_counts"),
    "profile": ("profile_values",),
    "time": ("time_moment",),
    "place": ("place_value",),
    "device": ("device_value",),
}


class Views(nn.Module):
    """All views that a model reads, by name; `sizes` are those that `ViewReader.sizes` gives."""

    def __init__(self, sizes: Mapping[str, Mapping[str, Any]], width: int) -> None:
        super().__init__()
        # by name: a configuration that was saved and loaded keeps no other order
        self.views = nn.ModuleDict({name: MODULES[name](width=width, **its) for name, its in sorted(sizes.items())})
        self.which = nn.Embedding(len(sizes), width)

    def forward(self, words: Words, given: Mapping[str, Tensor]) -> Positions:
        """The positions of all views one after the other, and the sum of their losses.

        Args:
            given: the tensors that each view reads, by name.

        Raises:
            ValueError: some are missing.
        """
        missing = [name for view in self.views for name in READS[view] if name not in given]
        if missing:
            raise ValueError(f"this model reads views of the user that were not given: {', '.join(missing)}")
        found = [part(words, **{key: given[key] for key in READS[name]}) for name, part in self.views.items()]
        states = [one.states + which for one, which in zip(found, self.which.weight, strict=True)]
        losses = [one.loss for one in found if one.loss is not None]
        return Positions(
            torch.cat(states, 1),
            torch.cat([one.used for one in found], 1),
            torch.stack(losses).sum() if losses else None,
        )
