"""RQ-VAE: an autoencoder whose middle is coded level by level.

RQ-VAE (https://arxiv.org/abs/2203.01941), for semantic IDs in TIGER (https://arxiv.org/abs/2305.05065): `z = E(x)`,
`c_l` the nearest code of `r_{l-1}`, `r_l = r_{l-1} - C_l[c_l]`, `x' = D(sum_l C_l[c_l])`; the loss is
`|x - x'|^2 + 0.25 sum_l |r_{l-1} - sg(C_l[c_l])|^2`, gradients pass the codes straight through, and the codebooks are
moving averages that start from k-means.

Deviations: vectors are centred and scaled as a whole before the encoder; for the first tenth of the steps the
autoencoder learns without codes, so that k-means finds latents that mean something (ours; TIGER takes the first
batch); the learning rate falls along a cosine. `assignment="sinkhorn"` balances every level within the batch while
learning (LC-Rec, https://arxiv.org/abs/2311.09049, does so at the last level); encoding always takes the nearest code,
so use is evened out, not guaranteed.

Fewer vectors than codes are fine: the codes that are left over are used by none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import mse_loss

from quantizers.codebooks import encode_residuals, find_codebooks, name_codebooks, sum_codes
from quantizers.folder import saved, write_folder
from quantizers.learning import (
    MovingCodebooks,
    adam,
    check_settings,
    descend,
    one_thread_and_seed,
    random_rows,
    straight_through,
)
from quantizers.network import Layers, apply_layers, find_layers, layers_of, mlp, name_layers
from quantizers.residual_kmeans import ResidualKMeans
from quantizers.rows import Centre, codes_of

COMMITMENT: Final = 0.25
_START_ROWS: Final = 32_768  # latents that k-means starts the codebooks from
_ASSIGNMENTS: Final = ("nearest", "sinkhorn")
_SETTINGS: Final = ("level_sizes", "latent", "hidden", "assignment", "steps", "batch", "learning_rate", "seed")


class RQVAE:
    """Encoder, L codebooks of its residuals, decoder.

    Args:
        level_sizes: L numbers of codes.
        latent: width of what is coded.
        hidden: widths of the encoder's hidden layers; the decoder has them in the opposite order.
        assignment: "nearest", or "sinkhorn" to use all codes alike while learning.
        steps: of the optimizer (Adam).
        batch: vectors a step.
        learning_rate: at the start.
        seed: of the weights, the batches and the first codebooks.

    Attributes:
        codebooks: L arrays (K_l, latent) float32.
    """

    def __init__(
        self,
        level_sizes: Sequence[int] = (256, 256, 256),
        latent: int = 64,
        hidden: Sequence[int] = (256,),
        assignment: str = "nearest",
        steps: int = 2000,
        batch: int = 1024,
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        check_settings(
            learning_rate, level_sizes=level_sizes, latent=latent, hidden=[1, *hidden], steps=steps, batch=batch
        )
        if assignment not in _ASSIGNMENTS:
            raise ValueError(f"assignment must be one of {', '.join(_ASSIGNMENTS)}, not {assignment!r}")
        self.level_sizes = tuple(int(size) for size in level_sizes)
        self.latent, self.hidden, self.assignment = int(latent), tuple(int(width) for width in hidden), assignment
        self.steps, self.batch, self.learning_rate, self.seed = int(steps), int(batch), float(learning_rate), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self._encoder: Layers = []
        self._decoder: Layers = []
        self._centre = Centre(np.zeros(0, np.float32), np.float32(1))

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn from (N, D) vectors, which may be a memory map: batches are read as they are needed.

        Raises:
            ValueError: there is no vector, one is not finite (its row is named), or learning diverged.
        """
        centre = Centre.of(x)
        widths = (x.shape[1], *self.hidden, self.latent)
        with one_thread_and_seed(self.seed):
            encoder, decoder = mlp(widths), mlp(widths[::-1])
            optimizer, schedule = adam([*encoder.parameters(), *decoder.parameters()], self.learning_rate, self.steps)
            codebooks: MovingCodebooks | None = None
            for step, rows in enumerate(random_rows(len(x), self.batch, self.steps, self.seed)):
                if step == self.steps // 10:
                    codebooks = self._first_codebooks(x, layers_of(encoder), centre)
                target = torch.from_numpy(centre.remove(x[rows]))
                z = encoder(target)
                if codebooks is None:
                    loss = mse_loss(decoder(z), target)
                else:
                    _, sums = codebooks.learn(z.detach())
                    # r_{l-1} - C_l[c_l] is z less the sum so far
                    commitment = torch.stack([mse_loss(z, quantized) for quantized in sums]).sum()
                    loss = mse_loss(decoder(straight_through(z, sums[-1])), target) + COMMITMENT * commitment
                descend(loss, optimizer, schedule)
        assert codebooks is not None
        self.codebooks, self._centre = codebooks.arrays(), centre
        self._encoder, self._decoder = layers_of(encoder), layers_of(decoder)
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L) codes, level by level the nearest to what is left of the latent.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """

        def code(block: NDArray[np.float32]) -> NDArray[np.int32]:
            return encode_residuals(apply_layers(self._encoder, self._centre.remove(block)), self.codebooks)

        return codes_of(x, self._width(), len(self.level_sizes), code)

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L levels to (N, D) vectors; fewer levels give a coarser vector.

        Raises:
            ValueError: not fitted, too many levels, or a code outside its level.
        """
        self._width()
        return self._centre.restore(apply_layers(self._decoder, sum_codes(codes, self.codebooks)))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {"class": "RQVAE", "width": self._width(), **{name: getattr(self, name) for name in _SETTINGS}}
        tensors = name_codebooks(self.codebooks) | self._centre.tensors()
        tensors |= name_layers("encoder", self._encoder) | name_layers("decoder", self._decoder)
        write_folder(Path(folder), config, tensors)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        with saved(folder, "RQVAE") as (config, tensors):
            width = int(config["width"])
            quantizer = cls(**{name: config[name] for name in _SETTINGS})
            widths = (width, *quantizer.hidden, quantizer.latent)
            quantizer._encoder = find_layers("encoder", tensors, widths)
            quantizer._decoder = find_layers("decoder", tensors, widths[::-1])
            quantizer.codebooks = find_codebooks(tensors, quantizer.level_sizes, quantizer.latent)
            quantizer._centre = Centre.find(tensors, width)
        return quantizer

    def _width(self) -> int:
        if not self.codebooks:
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return len(self._centre.mean)

    def _first_codebooks(self, x: NDArray[np.floating], encoder: Layers, centre: Centre) -> MovingCodebooks:
        rows = next(random_rows(len(x), _START_ROWS, 1, self.seed))
        z = apply_layers(encoder, centre.remove(x[rows]))
        start = ResidualKMeans(self.level_sizes, iterations=10, seed=self.seed).fit(z)
        balanced = range(len(self.level_sizes)) if self.assignment == "sinkhorn" else ()
        return MovingCodebooks(start.codebooks, min(self.batch, len(x)), balanced, self.seed)
