"""A learnt map from the vectors of a frozen text encoder to vectors that agree with the log.

OneSearch (https://arxiv.org/abs/2509.03236) aligns its text encoder with what people click and buy before items become
semantic IDs. Faithful: one map for queries and items, so that both can be quantized by the same codebooks. Ours: the
encoder stays frozen and a small residual map over its vectors is learnt instead, `unit(x A + gelu(x B) C)` with A an
identity and C zero at the start: an untrained map changes nothing, and a catalogue is aligned again in seconds.
`training/align.py` learns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onesearch.embed.text import unit_rows
from onesearch.errors import UserError
from onesearch.files import atomic_path, read_json, write_json

VERSION: Final = 1
_ROWS: Final = 8192


class Projection(nn.Module):
    """The map while it is learnt. It has no biases: the zero vector of a blank text stays zero.

    Args:
        width: D, of the vectors given.
        dimension: D', of the vectors returned; below D, the map starts as a random rotation cut off after D' columns.
        hidden: H, width of the residual part.
        seed: of the weights.
    """

    def __init__(self, width: int, dimension: int, hidden: int, seed: int = 0) -> None:
        super().__init__()
        if not 1 <= dimension <= width:
            remedy = f"use 1 to {width}, the width of the encoder's vectors"
            raise UserError(
                "the aligned vectors cannot be that wide", place="dimension", value=dimension, remedy=remedy
            )
        if hidden < 1:
            raise UserError("the residual part needs a width", place="hidden", value=hidden, remedy="use 1 or more")
        self.width, self.dimension, self.hidden = width, dimension, hidden
        random = torch.Generator().manual_seed(seed)
        start = torch.eye(width)
        if dimension < width:
            start = torch.linalg.qr(torch.randn(width, dimension, generator=random)).Q
        self.linear = nn.Parameter(start.contiguous())  # (D, D')
        self.inward = nn.Parameter(torch.randn(width, hidden, generator=random) * width**-0.5)  # (D, H)
        self.outward = nn.Parameter(torch.zeros(hidden, dimension))  # (H, D')

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) vectors -> (..., D') unit vectors; zeros where the vector is zero."""
        moved = vectors @ self.linear + nn.functional.gelu(vectors @ self.inward) @ self.outward
        return nn.functional.normalize(moved, dim=-1)


@dataclass(frozen=True)
class Alignment:
    """A learnt map, ready to be applied to vectors of the encoder that it was learnt for.

    Attributes:
        encoder: what `load_text_encoder` was given.
    """

    projection: Projection
    encoder: str

    def apply(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """(N, D) vectors -> (N, D') unit rows; zeros where the vector is zero.

        Computed in float64 and rounded: a row comes out the same whatever rows and threads it was computed with, save
        for a sum that falls on the very edge of two float32 numbers.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.projection.width:
            raise UserError(
                f"this alignment takes vectors of width {self.projection.width}",
                value=vectors.shape,
                remedy=f"give it vectors of the encoder {self.encoder!r}",
            )
        weights = {name: weight.detach().double().cpu() for name, weight in self.projection.named_parameters()}
        aligned = np.empty((len(vectors), self.projection.dimension), np.float32)
        with torch.no_grad():
            for start in range(0, len(vectors), _ROWS):
                part = torch.from_numpy(np.array(vectors[start : start + _ROWS], np.float64))
                moved = torch.func.functional_call(self.projection, weights, (part,))
                aligned[start : start + _ROWS] = moved.numpy()
        return unit_rows(aligned)

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and, last, `config.json`."""
        tensors = {name: weight.detach().cpu().contiguous() for name, weight in self.projection.named_parameters()}
        with atomic_path(folder / "model.safetensors") as path:
            save_file(tensors, path)
        sizes = {name: getattr(self.projection, name) for name in ("width", "dimension", "hidden")}
        write_json(folder / "config.json", {"version": VERSION, "encoder": self.encoder, **sizes})

    @classmethod
    def load(cls, folder: Path) -> Alignment:
        """Read what `save` wrote.

        Raises:
            UserError: there is none, it is damaged, or of another version.
        """
        config = read_json(folder / "config.json")
        remedy = "align again with training/align.py"
        if not isinstance(config, dict) or config.get("version") != VERSION:
            raise UserError("no alignment of this version", place=folder / "config.json", remedy=remedy)
        projection = Projection(config["width"], config["dimension"], config["hidden"])
        path = folder / "model.safetensors"
        try:
            projection.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                "unreadable weights", place=path, value=str(error).splitlines()[0], remedy=remedy
            ) from error
        return cls(projection, config["encoder"])
