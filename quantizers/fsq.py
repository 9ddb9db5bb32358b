"""Finite scalar quantization: a few bounded numbers, each rounded to one of a few values; no codebook to learn.

FSQ (https://arxiv.org/abs/2309.15505): an encoder gives d numbers, number i is bounded by a shifted tanh to a range
that holds L_i integers and is rounded, gradients pass the rounding straight through, and both networks learn from the
error of reconstruction alone. Faithful: the bound, the values in [-1, 1], the mixed radix that makes one code of many
numbers.

Ours: the levels of a semantic ID. The paper's code has no levels; here the d numbers come in L groups, and the product
of a group's sizes is the size of its level, such as 256 = 8 * 8 * 4. So that the first group says the most, a random
number of the last groups is zeroed for each vector while learning (nested dropout,
https://arxiv.org/abs/1402.0915); a prefix of codes therefore decodes to a coarser vector. The last layer of the encoder
is set, before learning, to give numbers of mean 0 and deviation 1, which tanh spreads over all values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from quantizers.codebooks import check_codes
from quantizers.folder import saved, write_folder
from quantizers.learning import adam, check_settings, descend, one_thread_and_seed, random_rows, straight_through
from quantizers.network import Layers, apply_layers, find_layers, layers_of, mlp, name_layers
from quantizers.rows import Centre, codes_of

_MARGIN: Final = 1e-3  # the paper's: the range reaches this much beyond the outermost integers
_START_ROWS: Final = 8192
_SETTINGS: Final = ("scalars", "hidden", "steps", "batch", "learning_rate", "seed")


class FSQ:
    """Encoder to d bounded numbers in L groups, rounding, decoder.

    Args:
        scalars: for each level the numbers of values of its scalars, at least 2 each; `((8, 8, 4),) * 3` has three
            levels of 256 codes.
        hidden: widths of the encoder's hidden layers; the decoder has them in the opposite order.
        steps: of the optimizer (Adam).
        batch: vectors a step.
        learning_rate: at the start.
        seed: of the weights, the batches and the zeroed groups.

    Attributes:
        level_sizes: L products.

    >>> FSQ(scalars=((8, 8, 4), (5, 5))).level_sizes
    (256, 25)
    """

    def __init__(
        self,
        scalars: Sequence[Sequence[int]] = ((8, 8, 4), (8, 8, 4), (8, 8, 4)),
        hidden: Sequence[int] = (256,),
        steps: int = 2000,
        batch: int = 1024,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        check_settings(learning_rate, hidden=[1, *hidden], steps=steps, batch=batch)
        if not scalars or any(not group or min(group) < 2 for group in scalars):
            raise ValueError(f"scalars must be one or more groups of numbers of at least 2, not {scalars!r}")
        self.scalars = tuple(tuple(int(size) for size in group) for group in scalars)
        self.level_sizes = tuple(prod(group) for group in self.scalars)
        self.hidden, self.steps, self.batch = tuple(int(width) for width in hidden), int(steps), int(batch)
        self.learning_rate, self.seed = float(learning_rate), int(seed)
        self._encoder: Layers = []
        self._decoder: Layers = []
        self._centre = Centre(np.zeros(0, np.float32), np.float32(1))

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn from (N, D) vectors, which may be a memory map.

        Raises:
            ValueError: there is no vector, one is not finite (its row is named), or learning diverged.
        """
        centre, sizes = Centre.of(x), self._sizes()
        widths = (x.shape[1], *self.hidden, len(sizes))
        # (L + 1, d): row l keeps the first l groups
        kept = torch.from_numpy(np.tri(len(self.scalars) + 1, len(self.scalars), -1, np.float32))
        kept = kept.repeat_interleave(torch.tensor([len(group) for group in self.scalars]), dim=1)
        with one_thread_and_seed(self.seed):
            encoder, decoder = mlp(widths), mlp(widths[::-1])
            some = next(random_rows(len(x), _START_ROWS, 1, self.seed))
            _standardize(encoder, torch.from_numpy(centre.remove(x[some])))
            optimizer, schedule = adam([*encoder.parameters(), *decoder.parameters()], self.learning_rate, self.steps)
            for rows in random_rows(len(x), self.batch, self.steps, self.seed):
                target = torch.from_numpy(centre.remove(x[rows]))
                groups = torch.randint(1, len(kept), (len(target),))
                middle = _round(encoder(target), torch.tensor(sizes)) * kept[groups]
                descend(mse_loss(decoder(middle), target), optimizer, schedule)
        self._centre, self._encoder, self._decoder = centre, layers_of(encoder), layers_of(decoder)
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L) codes.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """
        width, thresholds = self._width(), [_thresholds(size) for size in self._sizes()]

        def code(block: NDArray[np.float32]) -> NDArray[np.integer]:
            z = apply_layers(self._encoder, self._centre.remove(block))
            digits = iter(
                [np.searchsorted(edges, column, side="right") for edges, column in zip(thresholds, z.T, strict=True)]
            )
            return np.column_stack(
                [np.ravel_multi_index(tuple(islice(digits, len(group))), group) for group in self.scalars]
            )

        return codes_of(x, width, len(self.level_sizes), code)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L levels to (N, D) vectors; fewer levels give a coarser vector.

        Raises:
            ValueError: not fitted, too many levels, or a code outside its level.
        """
        self._width()
        check_codes(codes, self.level_sizes)
        middle, scalar = np.zeros((len(codes), len(self._sizes())), np.float32), 0
        for level, group in enumerate(self.scalars[: codes.shape[1]]):
            for digit, size in zip(np.unravel_index(codes[:, level], group), group, strict=True):
                middle[:, scalar] = (digit - size // 2) / (size // 2)
                scalar += 1
        return self._centre.restore(apply_layers(self._decoder, middle))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {"class": "FSQ", "width": self._width(), **{name: getattr(self, name) for name in _SETTINGS}}
        layers = name_layers("encoder", self._encoder) | name_layers("decoder", self._decoder)
        write_folder(Path(folder), config, layers | self._centre.tensors())

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        with saved(folder, "FSQ") as (config, tensors):
            width = int(config["width"])
            quantizer = cls(**{name: config[name] for name in _SETTINGS})
            widths = (width, *quantizer.hidden, len(quantizer._sizes()))
            quantizer._encoder = find_layers("encoder", tensors, widths)
            quantizer._decoder = find_layers("decoder", tensors, widths[::-1])
            quantizer._centre = Centre.find(tensors, width)
        return quantizer

    def _width(self) -> int:
        if not self._encoder:
            raise ValueError("this quantizer has learned nothing yet: call fit first")
        return len(self._centre.mean)

    def _sizes(self) -> list[int]:
        """d numbers of values."""
        return [size for group in self.scalars for size in group]


def _round(z: Tensor, sizes: Tensor) -> Tensor:
    """(B, d) numbers, (d,) numbers of values -> (B, d) the values, in [-1, 1], with the gradients of the bounded z."""
    half = (sizes - 1) * (1 + _MARGIN) / 2
    offset = torch.where(sizes % 2 == 0, 0.5, 0.0)  # an even number of integers lies about -1/2
    bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
    return straight_through(bounded, bounded.round()) / (sizes // 2)


def _thresholds(size: int) -> NDArray[np.float32]:
    """(size - 1,) where the rounded value of a number changes; compared with these, a tanh decides no code."""
    half, offset = (size - 1) * (1 + _MARGIN) / 2, 0.5 if size % 2 == 0 else 0.0
    between = np.arange(size - 1) - size // 2 + 0.5
    return (np.arctanh((between + offset) / half) - np.arctanh(offset / half)).astype(np.float32)


@torch.no_grad()
def _standardize(encoder: nn.Sequential, x: Tensor) -> None:
    """Make the encoder's (B, d) numbers for these vectors have mean 0 and deviation 1."""
    last = encoder[-1]
    assert isinstance(last, nn.Linear)
    z = encoder(x)
    deviation = z.std(dim=0, correction=0).clamp_min(1e-6)
    last.weight.div_(deviation[:, None])
    last.bias.sub_(z.mean(dim=0)).div_(deviation)
