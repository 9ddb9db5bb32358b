"""What answers requests: a trained model together with how it reads them, whatever its kind."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from onesearch.corpus import Corpus
from onesearch.errors import UserError
from onesearch.files import read_json
from onesearch.readers.reader import Reader
from onesearch.run import Run
from onesearch.sid import SidTable

KINDS: Final = {
    "onesearch-generator": "onesearch.readers.generator:GeneratorReader",
    "onesearch-language": "onesearch.readers.language:LanguageReader",
    "onesearch-sequence": "onesearch.readers.sequence:SequenceReader",
}
"""The `model_type` of a saved model's config.json -> the class that reads requests for it."""


def load_reader(run: Run, stage: str, corpus: Corpus, table: SidTable) -> Reader:
    """The model in `models/STAGE` of a run.

    Raises:
        UserError: it is of a kind that is not known.
    """
    folder: Path = run.folder / "models" / stage
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in KINDS:
        remedy = f"known kinds: {', '.join(KINDS)}"
        raise UserError("a model of an unknown kind", place=folder / "config.json", value=kind, remedy=remedy)
    module, name = KINDS[kind].split(":")
    reader: Reader = getattr(import_module(module), name).load(run, folder, corpus, table)
    return reader


__all__ = ["KINDS", "Reader", "load_reader"]
