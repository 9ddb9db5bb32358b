"""Random numbers that depend on what is drawn for, not on what else is in the batch.

Draws of one request come out the same whether it is searched alone, beside others, or in another process, so that a
training on two processes sees the samples that one process sees. The numbers are a hash: the finaliser of SplitMix64
(Steele, Lea and Flood, 2014, https://doi.org/10.1145/2714064.2660195) over the request's key and what is asked.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
MIX: Final = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64), (31, 1))
BITS: Final = 23
"""So many that a half more is still a float32 below 1."""

Random = torch.Generator | Tensor | None
"""Where random numbers come from: a generator, the default one, or (B,) int64 a key for each request."""


def hashed(*parts: Tensor | int) -> Tensor:
    """(...) int64 of parts that broadcast, all of them int64; another order of the parts gives another number."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        state = (part + state) * 3 + GOLDEN
        for shift, factor in MIX:
            state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return state


def uniform(*parts: Tensor | int) -> Tensor:
    """(...) float32 strictly between 0 and 1."""
    high = (hashed(*parts) >> (64 - BITS)) & ((1 << BITS) - 1)
    return (high.float() + 0.5) * 2.0**-BITS


def fine_uniform(*parts: Tensor | int) -> Tensor:
    """(...) float64 from 0 to below 1, with all the bits that it has: to choose among more than some thousands."""
    return ((hashed(*parts) >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def uniforms(random: Random, shape: tuple[int, ...], device: torch.device, *parts: Tensor | int) -> Tensor:
    """(B, ...) float32 numbers from 0 to 1 for B requests.

    Args:
        parts: what tells one number from the others of a request where `random` is keys; they broadcast to `shape`.
    """
    if not isinstance(random, Tensor):
        return torch.rand(shape, generator=random, device=device)
    return uniform(random.view(-1, *[1] * (len(shape) - 1)), *parts).expand(shape)


def exponentials(random: Random, shape: tuple[int, ...], device: torch.device, *parts: Tensor | int) -> Tensor:
    """(B, ...) float32 numbers from the exponential distribution of rate 1; see `uniforms`."""
    if not isinstance(random, Tensor):
        return torch.empty(shape, device=device).exponential_(generator=random)
    return -torch.log1p(-uniforms(random, shape, device, *parts))
