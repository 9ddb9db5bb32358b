"""A saved model is read whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from transformers import PreTrainedModel

from onesearch.errors import UserError

Model = TypeVar("Model", bound=PreTrainedModel)


def read_whole(kind: type[Model], folder: Path) -> Model:
    """The model that `save_pretrained` wrote. Where weights are missing the library would go on with random ones.

    Raises:
        UserError: weights are missing or unknown.
    """
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    for problem, names in (("lack weights", found["missing_keys"]), ("have unknown weights", found["unexpected_keys"])):
        if names:
            told = f"the files of this model {problem}"
            remedy = "it was written by another version or in part: train it again"
            raise UserError(told, place=folder, value=sorted(names)[0], remedy=remedy)
    return model
