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
class TextCodes:
    """Gives texts the codes on which queries of their words land."""

    recipe: Recipe
    quantizer: Quantizer

    @classmethod
    def load(cls, run_folder: Path) -> TextCodes:
        """From the semantic IDs of a run.

        Raises:
            UserError: there are no semantic IDs yet, or they are of pictures.
        """
        folder = _folder_of(run_folder)
        if of_pictures(folder):
            remedy = "ask with --photo FILE, or use `views: searches` or another method"
            raise UserError("these semantic IDs are of pictures, a query is a text", place=folder, remedy=remedy)
        recipe = Recipe.load(folder / "recipe")
        with told(folder / "quantizer", "run `onesearch quantize` again"):
            return cls(recipe, load_quantizer(folder / "quantizer"))

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
    of_texts = TextCodes.load(run_folder)
    codes = of_texts([query])[0].tolist()
    answer: dict[str, Any] = {"query": query, **_spelt(codes)}
    keywords = of_texts.recipe.keywords
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
    return {"photo": str(photo), **_semantic_id(folder, encoder.encode([photo]))}


def _folder_of(run_folder: Path) -> Path:
    folder = run_folder / "sid"
    if not (folder / "quantizer").exists():
        raise UserError("no semantic IDs here yet", place=folder, remedy=f"run `onesearch quantize --run {run_folder}`")
    return folder


def _semantic_id(folder: Path, vector: NDArray[np.float32]) -> dict[str, Any]:
    """(1, D) -> `sid` and `codes`."""
    with told(folder / "quantizer", "run `onesearch quantize` again"):
        return _spelt(load_quantizer(folder / "quantizer").encode(vector)[0].tolist())


def _spelt(codes: list[int]) -> dict[str, Any]:
    return {"sid": "".join(sid_token(level, code) for level, code in enumerate(codes)), "codes": codes}
