"""RQ-KMeans+: residual k-means, refined by learning.

The idea is that of GPR (https://arxiv.org/abs/2511.10138): take the codebooks of residual k-means as the start of an
RQ-VAE whose encoder adds to its input, `z = x + f(x)`, so that learning begins where k-means ended instead of at
random, and codes do not collapse. The loss is that of RQ-VAE (https://arxiv.org/abs/2203.01941) with the codebooks as
parameters: `|x - x'|^2 + sum_l |sg(r_{l-1}) - C_l[c_l]|^2 + 0.25 sum_l |r_{l-1} - sg(C_l[c_l])|^2`.

GPR is known to us by its description, not by code. Ours: the decoder adds to its input as well, `x' = q + g(q)` with
`q = sum_l C_l[c_l]`; f and g are zero at the start, where the quantizer therefore *is* residual k-means; the error of
reconstruction is then measured ten times on the vectors it is fitted on (at most `MEASURED_ROWS`, drawn once), and the
best state is kept, the start included: by this measure the result is never worse than its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from quantizers.codebooks import encode_residuals, find_codebooks, find_used_sizes, name_codebooks, sum_codes
from quantizers.folder import saved, write_folder
from quantizers.learning import (
    adam,
    check_settings,
    descend,
    one_thread_and_seed,
    random_rows,
    squared_distances,
)
from quantizers.metrics import reconstruction_error
from quantizers.network import Layers, apply_layers, find_layers, layers_of, mlp, name_layers
from quantizers.residual_kmeans import ResidualKMeans
from quantizers.rows import Centre, codes_of

COMMITMENT: Final = 0.25
MEASURED_ROWS: Final = 65_536
_MEASUREMENTS: Final = 10
_SETTINGS: Final = ("level_sizes", "hidden", "steps", "batch", "learning_rate", "iterations", "seed")


class RQKMeansPlus:
    """L codebooks that began as those of residual k-means, between an encoder and a decoder that began as nothing.

    Args:
        level_sizes: L numbers of codes.
        hidden: width of the one hidden layer of f and of g.
        steps: of the optimizer (Adam).
        batch: vectors a step.
        learning_rate: at the start.
        iterations: of the k-means it starts from.
        seed: of k-means, the weights and the batches.

    Attributes:
        codebooks: L arrays (k_l, D) float32, k_l <= K_l: a level with fewer distinct residuals has fewer codes.
        start_error: what residual k-means loses of the measured vectors, as `reconstruction_error` has it.
        error: what is lost now, at most `start_error`.
    """

    def __init__(
        self,
        level_sizes: Sequence[int] = (256, 256, 256),
        hidden: int = 256,
        steps: int = 1000,
        batch: int = 1024,
        learning_rate: float = 1e-3,
        iterations: int = 25,
        seed: int = 0,
    ) -> None:
        check_settings(
            learning_rate, level_sizes=level_sizes, hidden=hidden, steps=steps, batch=batch, iterations=iterations
        )
        self.level_sizes, self.hidden = tuple(int(size) for size in level_sizes), int(hidden)
        self.steps, self.batch, self.learning_rate = int(steps), int(batch), float(learning_rate)
        self.iterations, self.seed = int(iterations), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self.start_error = self.error = float("nan")
        self._encoder: Layers = []
        self._decoder: Layers = []
        self._centre = Centre(np.zeros(0, np.float32), np.float32(1))

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn from (N, D) vectors, which may be a memory map.

        Raises:
            ValueError: there is no vector, one is not finite (its row is named), or learning diverged.
        """
        self._centre = Centre.of(x)
        measured = np.asarray(x[next(random_rows(len(x), MEASURED_ROWS, 1, self.seed))], np.float32)
        with one_thread_and_seed(self.seed):
            encoder, decoder = (_nothing_yet((x.shape[1], self.hidden, x.shape[1])) for _ in range(2))
            codebooks = [nn.Parameter(torch.tensor(codebook)) for codebook in self._start(x)]
            self._take(codebooks, encoder, decoder)
            self.start_error = self.error = self._lost(measured)
            best = self.codebooks, self._encoder, self._decoder
            parameters = [*codebooks, *encoder.parameters(), *decoder.parameters()]
            optimizer, schedule = adam(parameters, self.learning_rate, self.steps)
            for step, rows in enumerate(random_rows(len(x), self.batch, self.steps, self.seed), 1):
                target = torch.from_numpy(self._centre.remove(x[rows]))
                z = target + encoder(target)
                loss, quantized = _code(z, codebooks)
                quantized = quantized + (z - z.detach())  # gradients reach the codes, and pass through them
                descend(loss + mse_loss(quantized + decoder(quantized), target), optimizer, schedule)
                if step * _MEASUREMENTS // self.steps > (step - 1) * _MEASUREMENTS // self.steps:
                    self._take(codebooks, encoder, decoder)
                    error = self._lost(measured)
                    if error < self.error:
                        self.error, best = error, (self.codebooks, self._encoder, self._decoder)
            self.codebooks, self._encoder, self._decoder = best
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L) codes, level by level the nearest to what is left of `x + f(x)`.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """

        def code(block: NDArray[np.float32]) -> NDArray[np.int32]:
            return encode_residuals(apply_layers(self._encoder, self._centre.remove(block), skip=True), self.codebooks)

        return codes_of(x, self._width(), len(self.level_sizes), code)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L levels to (N, D) vectors; fewer levels give a coarser vector.

        Raises:
            ValueError: not fitted, too many levels, or a code that its level does not have.
        """
        self._width()
        return self._centre.restore(apply_layers(self._decoder, sum_codes(codes, self.codebooks), skip=True))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {
            "class": "RQKMeansPlus",
            "width": self._width(),
            **{name: getattr(self, name) for name in _SETTINGS},
            "used_sizes": [len(codebook) for codebook in self.codebooks],
            "start_error": self.start_error,
            "error": self.error,
        }
        tensors = name_codebooks(self.codebooks) | self._centre.tensors()
        tensors |= name_layers("encoder", self._encoder) | name_layers("decoder", self._decoder)
        write_folder(Path(folder), config, tensors)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        with saved(folder, "RQKMeansPlus") as (config, tensors):
            width = int(config["width"])
            quantizer = cls(**{name: config[name] for name in _SETTINGS})
            widths = (width, quantizer.hidden, width)
            quantizer._encoder = find_layers("encoder", tensors, widths)
            quantizer._decoder = find_layers("decoder", tensors, widths)
            quantizer.codebooks = find_codebooks(tensors, find_used_sizes(config, quantizer.level_sizes), width)
            quantizer._centre = Centre.find(tensors, width)
            quantizer.start_error, quantizer.error = float(config["start_error"]), float(config["error"])
        return quantizer

    def _width(self) -> int:
        if not self.codebooks:
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return len(self._centre.mean)

    def _start(self, x: NDArray[np.floating]) -> list[NDArray[np.float32]]:
        """The codebooks of residual k-means, for centred and scaled vectors."""
        start = ResidualKMeans(self.level_sizes, iterations=self.iterations, seed=self.seed).fit(x)
        books = [book[:used] for book, used in zip(start.codebooks, start.used_sizes, strict=True)]
        books[0] = books[0] - self._centre.mean
        return [book / self._centre.scale for book in books]

    def _take(self, codebooks: Sequence[Tensor], encoder: nn.Sequential, decoder: nn.Sequential) -> None:
        self.codebooks = [codebook.detach().numpy().copy() for codebook in codebooks]
        self._encoder, self._decoder = layers_of(encoder), layers_of(decoder)

    def _lost(self, x: NDArray[np.float32]) -> float:
        return reconstruction_error(x, self.decode(self.encode(x)))


def _code(z: Tensor, codebooks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, D) latents -> the loss of codebooks and commitment, and (B, D) the sum of the codes."""
    loss, quantized = torch.zeros(()), torch.zeros_like(z)
    for codebook in codebooks:
        with torch.no_grad():
            code = squared_distances(z - quantized, codebook).argmin(dim=1)
        quantized = quantized + codebook[code]
        loss = loss + mse_loss(quantized, z.detach()) + COMMITMENT * mse_loss(z, quantized.detach())
    return loss, quantized


def _nothing_yet(widths: Sequence[int]) -> nn.Sequential:
    """A network that answers zero until it has learned."""
    network = mlp(widths)
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network
