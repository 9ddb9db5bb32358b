"""A saved quantizer: a folder with `config.json` and `model.safetensors`.

`config.json` also holds the version of this layout and the SHA-256 of the tensors, so that files of another time, or
with a flipped bit, are told when they are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

FORMAT: Final = 2
Tensors = dict[str, NDArray[Any]]


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Write both files, each whole or not at all; the configuration last: a folder which has one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, settings = folder / "model.safetensors.partial", folder / "config.json.partial"
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, weights)
        about = {**config, "format": FORMAT, "sha256": _sha256(weights)}
        settings.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        weights.replace(folder / "model.safetensors")
        settings.replace(folder / "config.json")
    finally:
        weights.unlink(missing_ok=True)
        settings.unlink(missing_ok=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no JSON object, or of another version.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object")
    if config.get("format") != FORMAT:
        found = repr(config["format"]) if "format" in config else "none"
        raise ValueError(f"{path}: its format is {found}, not {FORMAT}: fit and save the quantizer again")
    return config


def read_tensors(folder: Path) -> Tensors:
    """The tensors by name.

    Raises:
        FileNotFoundError: there is no file. ValueError: it is damaged, or not the one that was saved.
    """
    path = folder / "model.safetensors"
    expected, found = read_config(folder).get("sha256"), _sha256(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    if found != expected:
        raise ValueError(
            f"{path}: damaged, or not of this config.json (SHA-256 {found[:12]}, {str(expected)[:12]} when saved): "
            "copy the folder again, or fit and save the quantizer again"
        )
    return tensors


@contextmanager
def saved(folder: Path | str, name: str) -> Iterator[tuple[dict[str, Any], Tensors]]:
    """Configuration and tensors of a saved quantizer; what does not fit in them is told as a damaged `name`.

    Raises:
        FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
    """
    config, tensors = read_config(Path(folder)), read_tensors(Path(folder))
    try:
        yield config, tensors
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: not a saved {name}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
