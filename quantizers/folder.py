"""A saved quantizer: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

Tensors = dict[str, NDArray[Any]]


def write_folder(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """Write both files, each whole or not at all; the configuration last: a folder which has one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, settings = folder / "model.safetensors.partial", folder / "config.json.partial"
    try:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, weights)
        settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        weights.replace(folder / "model.safetensors")
        settings.replace(folder / "config.json")
    finally:
        weights.unlink(missing_ok=True)
        settings.unlink(missing_ok=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration.

    Raises:
        FileNotFoundError: there is none. ValueError: it is no JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object")
    return config


def read_tensors(folder: Path) -> Tensors:
    """The tensors by name.

    Raises:
        FileNotFoundError: there is no file. ValueError: it is damaged.
    """
    path = folder / "model.safetensors"
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
