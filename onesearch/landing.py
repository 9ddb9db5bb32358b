"""Where a query or a photo lands: the semantic ID that it would have.

It has no rank, which only items have: its codes are a prefix, below which the items most like it are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onesearch.embed.recipe import Recipe
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.semantic_ids import of_pictures, told
from onesearch.sid import sid_token
from quantizers.quantizer import Quantizer, load_quantizer


@dataclass(frozen=True)
class QueryCodes:
    """Gives queries the codes that an item with their text would have, without a last level that makes codes unique."""

    recipe: Recipe
    quantizer: Quantizer

    @classmethod
    def load(cls, run_folder: Path) -> QueryCodes:
        """From the semantic IDs of a run.

        Raises:
            UserError: there are no semantic IDs yet, or they are of pictures.
        """
        folder = _folder_of(run_folder)
        if of_pictures(folder):
            remedy = "ask with --photo FILE, or use `views: searches` or another method"
            raise UserError("these semantic IDs are of pictures, a query is a text", place=folder, remedy=remedy)
        return cls(Recipe.load(folder / "recipe"), _quantizer(folder))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """(n, L') codes of n texts; those of a blank one mean nothing."""
        return self.quantizer.encode(self.recipe.of_queries(texts))


def query_semantic_id(run_folder: Path, query: str) -> dict[str, Any]:
    """The semantic ID of a query: `query`, `sid` as text, `codes`, and the `keywords` that were found in it.

    Raises:
        UserError: there are no semantic IDs yet, they are of pictures, or the query is blank.
    """
    if not query.strip():
        raise UserError("a blank query has no semantic ID", place="--query", remedy='--query "cold cereal"')
    of_queries = QueryCodes.load(run_folder)
    answer = {"query": query, **_spelt(of_queries([query]))}
    keywords = of_queries.recipe.keywords
    if keywords is not None:
        answer["keywords"] = [keywords.texts[number] for number in keywords.find([query]).keyword]
    return answer


def photo_semantic_id(run_folder: Path, photo: Path) -> dict[str, Any]:
    """The semantic ID that a photo lands on: `photo`, `sid` as text, `codes`.

    Raises:
        UserError: there are no semantic IDs yet, they are of texts, or the file is no picture.
    """
    from onesearch.embed.image import load_image_encoder

    folder = _folder_of(run_folder)
    if not of_pictures(folder):
        remedy = "ask with --query TEXT, or quantize pictures: `--method configs/quantizers/vrq-pictures.yaml`"
        raise UserError("these semantic IDs are of texts, a photo is a picture", place=folder, remedy=remedy)
    encoder = load_image_encoder(read_json(folder / "recipe/pictures.json")["image_encoder"])
    return {"photo": str(photo), **_spelt(_quantizer(folder).encode(encoder.encode([photo])))}


def _folder_of(run_folder: Path) -> Path:
    folder = run_folder / "sid"
    if not (folder / "quantizer").exists():
        raise UserError("no semantic IDs here yet", place=folder, remedy=f"run `onesearch quantize --run {run_folder}`")
    return folder


def _quantizer(folder: Path) -> Quantizer:
    with told(folder / "quantizer", "run `onesearch quantize` again"):
        return load_quantizer(folder / "quantizer")


def _spelt(codes: NDArray[np.int32]) -> dict[str, Any]:
    """(1, L) -> `sid` and `codes`."""
    row = codes[0].tolist()
    return {"sid": "".join(sid_token(level, code) for level, code in enumerate(row)), "codes": row}
