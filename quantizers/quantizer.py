"""What every quantizer can do, and how one is read back without knowing which it was."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from quantizers.folder import read_config

CLASSES: Final = {
    "ResidualKMeans": "quantizers.residual_kmeans:ResidualKMeans",
    "RQVAE": "quantizers.rq_vae:RQVAE",
    "RQKMeansPlus": "quantizers.rq_kmeans_plus:RQKMeansPlus",
    "FSQ": "quantizers.fsq:FSQ",
    "VRQ": "quantizers.vrq:VRQ",
}
"""What `config.json` may name, and where it is: imported when it is needed, some of them need torch."""


class Quantizer(Protocol):
    """Vectors of width D to L codes and back.

    Attributes:
        level_sizes: L numbers; a code of level l is in `range(level_sizes[l])`.
    """

    level_sizes: tuple[int, ...]

    def fit(self, x: NDArray[np.floating]) -> Self:
        """Learn the codebooks from (N, D) vectors, which may be a memory map; returns itself."""
        ...

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) vectors to (N, L) codes; a vector's codes do not depend on what it is encoded with."""
        ...

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, L) codes to (N, D) vectors."""
        ...

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        ...

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote."""
        ...


def load_quantizer(folder: Path | str) -> Quantizer:
    """Read a saved quantizer of whichever class `config.json` names.

    Raises:
        FileNotFoundError: there is no quantizer in the folder.
        ValueError: its class is unknown, or the files are damaged or of another version.
    """
    name = read_config(Path(folder)).get("class")
    if name not in CLASSES:
        raise ValueError(f"{Path(folder) / 'config.json'}: unknown class {name!r} (known: {', '.join(CLASSES)})")
    module, attribute = CLASSES[name].split(":")
    quantizer: type[Quantizer] = getattr(import_module(module), attribute)
    return quantizer.from_pretrained(folder)
