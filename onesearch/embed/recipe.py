"""How the vectors that are quantized come about: a text's, aligned, drawn to its keywords, beside co-purchases.

One recipe makes the vectors of items and of queries, and it is kept with the semantic IDs it led to, so that a query or
a new item of tomorrow gets its codes from a vector of the same kind. A query, and an item that nobody bought yet, has
zeros for co-purchases, as `behaviour_vectors` gives an item that was never bought with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.embed.keywords import Keywords, enhance
from onesearch.embed.text import TextEncoder, load_text_encoder
from onesearch.errors import UserError
from onesearch.files import read_json, write_json

if TYPE_CHECKING:
    from onesearch.embed.alignment import Alignment  # imports torch, which takes seconds

VERSION: Final = 2
BOUGHT: Final = 128
"""Width of the co-purchase vectors."""


@dataclass(frozen=True)
class Recipe:
    """How a run makes vectors.

    Attributes:
        encoder: of the texts, see `load_text_encoder`.
        alignment: applied to the encoder's vectors, those of keywords too.
        keywords: of the catalogue.
        behaviour: share of co-purchase vectors.
    """

    encoder: str
    alignment: Alignment | None = None
    keywords: Keywords | None = None
    behaviour: float = 0.0

    def of_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(Q, D') vectors of queries."""
        return self._with_bought(self._enhanced(self._encode(texts), texts), None)

    def of_items(
        self, vectors: NDArray[np.float32], texts: Sequence[str], bought: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """(N, D) vectors by the text encoder -> (N, D') vectors to be quantized; untouched if nothing is to be done.

        Args:
            vectors: which may be a memory map.
            texts: N, what keywords are found in (see `item_keyword_texts`); not read without keywords.
            bought: (N, BOUGHT) co-purchase vectors, zeros if left out; not read without `behaviour`.
        """
        if self.alignment is not None:
            vectors = self.alignment.apply(vectors)
        return self._with_bought(self._enhanced(vectors, texts), bought)

    def save(self, folder: Path) -> None:
        """Write `recipe.json`, and beside it the keywords and the alignment if there are any."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.alignment is not None:
            self.alignment.save(folder / "align")
        if self.keywords is not None:
            self.keywords.save(folder / "keywords.parquet")
        parts = {"aligned": self.alignment is not None, "keywords": self.keywords is not None}
        about = {"version": VERSION, "encoder": self.encoder, "behaviour": self.behaviour, **parts}
        write_json(folder / "recipe.json", about)

    @classmethod
    def load(cls, folder: Path) -> Recipe:
        """Read what `save` wrote.

        Raises:
            UserError: there is none, or one of another version.
        """
        path, remedy = folder / "recipe.json", "run `onesearch quantize` again"
        if not path.exists():
            raise UserError("nothing here says how vectors were made", place=folder, remedy=remedy)
        about = read_json(path)
        if about.get("version") != VERSION:
            raise UserError("made by another version", place=path, value=about.get("version"), remedy=remedy)
        keywords = Keywords.load(folder / "keywords.parquet") if about["keywords"] else None
        return cls(
            about["encoder"], _alignment(folder / "align") if about["aligned"] else None, keywords, about["behaviour"]
        )

    @cached_property
    def _texts(self) -> TextEncoder:
        return load_text_encoder(self.encoder)

    def _encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) aligned vectors of texts."""
        vectors = self._texts.encode(texts)
        return vectors if self.alignment is None else self.alignment.apply(vectors)

    def _enhanced(self, vectors: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
        return vectors if self.keywords is None else enhance(vectors, texts, self.keywords, self._encode)

    def _with_bought(self, vectors: NDArray[np.float32], bought: NDArray[np.float32] | None) -> NDArray[np.float32]:
        if not self.behaviour:
            return vectors
        bought = np.zeros((len(vectors), BOUGHT), np.float32) if bought is None else bought
        return np.hstack([vectors * (1 - self.behaviour), bought * self.behaviour])


def run_alignment(run_folder: Path, encoder: str) -> Alignment:
    """The alignment of a run.

    Raises:
        UserError: the run has none, or one for another text encoder.
    """
    folder = run_folder / "models/align"
    remedy = f"run `accelerate launch training/align.py --run {run_folder}` first"
    if not (folder / "config.json").exists():
        raise UserError("this run has no alignment", place=folder, remedy=remedy)
    alignment = _alignment(folder)
    if alignment.encoder != encoder:
        raise UserError("alignment of another text encoder", place=folder, value=alignment.encoder, remedy=remedy)
    return alignment


def _alignment(folder: Path) -> Alignment:
    from onesearch.embed.alignment import Alignment

    return Alignment.load(folder)
