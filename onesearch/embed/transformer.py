"""Transformer text encoders through `sentence_transformers`, from the hub or from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from onesearch.embed.text import readable, unit_rows
from onesearch.errors import UserError


class TransformerEncoder:
    """Any SentenceTransformer; a plain Hugging Face encoder is read as the mean of its token vectors.

    Args:
        name: hub id or local folder.
        folder: where the model is, if not at its name.

    Raises:
        UserError: nothing is found there, or it is no text encoder.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        try:
            self._model = SentenceTransformer(str(folder or name))
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # what hub, configuration and weights raise when they are absent
            raise UserError(
                f"cannot load this text encoder: {str(error).splitlines()[0]}",
                place="text encoder",
                value=name,
                remedy="give `wordllama`, a hub id (downloaded before if HF_HUB_OFFLINE is set) or the model's folder",
            ) from error
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise UserError("this model does not say how wide its vectors are", place="text encoder", value=name)
        self.name = name
        self.dimension = int(dimension)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a text; zeros where the text is blank."""
        read = [readable(text).strip() for text in texts]
        vectors = np.zeros((len(read), self.dimension), np.float32)
        filled = [i for i, text in enumerate(read) if text]
        if filled:
            encoded = self._model.encode([read[i] for i in filled], show_progress_bar=False, convert_to_numpy=True)
            vectors[filled] = np.asarray(encoded, np.float32)
        return unit_rows(vectors)
