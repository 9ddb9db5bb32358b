"""Models of furniture as meshes: the libraries of Sweet Home 3D, in the Debian package `sweethome3d-furniture`.

A library is a `.sh3f` file: a zip of OBJ models and a `PluginFurnitureCatalog.properties` that names each model, its
category and its license. Meshes are read by `trimesh`, in memory: nothing is unpacked.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import trimesh
from numpy.typing import NDArray

from benchmarks.render import Mesh
from onesearch.errors import UserError

CATALOGUE: Final = "PluginFurnitureCatalog.properties"
_TEXTURE: Final = 256
"""Longest side of a texture; a view has no room for more."""


@dataclass(frozen=True)
class Model:
    """One entry of a library.

    Attributes:
        product: its id, unique among the libraries: their creator's folder and the model's name.
        name: in English.
        category: in English, as the library says.
        library: the file it is in.
        path: of the OBJ file inside the library.
    """

    product: str
    name: str
    category: str
    library: Path
    path: str


def find_models(folder: Path) -> list[Model]:
    """All models of the `.sh3f` libraries of a folder, in the order of their ids.

    Raises:
        UserError: there is no library, or one is damaged.
    """
    libraries = sorted(folder.glob("*.sh3f"))
    if not libraries:
        remedy = "apt-get install sweethome3d-furniture, then --models /usr/share/sweethome3d/furniture"
        raise UserError("there is no .sh3f library", place=folder, remedy=remedy)
    models = [model for library in libraries for model in _entries(library)]
    return sorted(models, key=lambda model: model.product)


def _entries(library: Path) -> list[Model]:
    try:
        with zipfile.ZipFile(library) as archive:
            text = archive.read(CATALOGUE).decode("latin-1")
            inside = set(archive.namelist())
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise UserError(
            f"not a furniture library: {error}", place=library, remedy="install the package again"
        ) from error
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    for key, number, value in re.findall(r"^(\w+)#(\d+)=(.*)$", text, re.MULTILINE):
        entries[number][key] = value.strip()
    models = []
    for entry in entries.values():
        path = entry.get("model", "").lstrip("/")
        if path not in inside:
            raise UserError("a model is missing", place=library, value=path, remedy="install the package again")
        product = f"{PurePosixPath(path).parts[0]}-{PurePosixPath(path).stem}"
        models.append(Model(product, entry.get("name", product), entry.get("category", ""), library, path))
    return models


def load_mesh(model: Model) -> Mesh:
    """The triangles of a model with their materials.

    Raises:
        UserError: it has no triangle, or trimesh cannot read it.
    """
    with zipfile.ZipFile(model.library) as archive:
        folder = str(PurePosixPath(model.path).parent)
        resolver = trimesh.resolvers.ZipResolver(
            {name: trimesh.util.wrap_as_stream(archive.read(name)) for name in _beside(archive, folder)},
            namespace=folder,
        )
        try:
            scene = trimesh.load_scene(
                trimesh.util.wrap_as_stream(archive.read(model.path)), file_type="obj", resolver=resolver
            )
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"not a readable OBJ model: {error}", place=model.library, value=model.path) from error
    parts = [part for part in scene.geometry.values() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    corners = [np.asarray(part.triangles, np.float64) for part in parts]
    finite = [np.isfinite(part).all(axis=(1, 2)) for part in corners]
    if not sum(int(ok.sum()) for ok in finite):
        raise UserError("this model has no triangle", place=model.library, value=model.path)
    looks = [_look(part) for part in parts]
    return Mesh(
        corners=np.concatenate([part[ok] for part, ok in zip(corners, finite, strict=True)]),
        uv=np.concatenate([_uv(part)[ok] for part, ok in zip(parts, finite, strict=True)]),
        material=np.repeat(np.arange(len(parts)), [int(ok.sum()) for ok in finite]),
        colours=np.stack([colour for colour, _ in looks]),
        textures=[texture for _, texture in looks],
    )


def _beside(archive: zipfile.ZipFile, folder: str) -> list[str]:
    return [name for name in archive.namelist() if name.startswith(f"{folder}/") and not name.endswith("/")]


def _uv(part: trimesh.Trimesh) -> NDArray[np.float32]:
    """(F, 3, 2) texture coordinates, zeros where the model has none."""
    uv = getattr(part.visual, "uv", None)
    if uv is None or len(uv) != len(part.vertices):
        return np.zeros((len(part.faces), 3, 2), np.float32)
    return np.nan_to_num(np.asarray(uv, np.float32)[part.faces])


def _look(part: trimesh.Trimesh) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """(3,) colour and (H, W, 3) texture of a part that has one material."""
    material: Any = getattr(part.visual, "material", None)
    colour = np.asarray(getattr(material, "main_color", (160, 160, 160, 255)), np.float32)[:3] / np.float32(255)
    image = getattr(material, "image", None)
    if image is None:
        return colour, None
    image = image.convert("RGB")
    image.thumbnail((_TEXTURE, _TEXTURE))
    return colour, np.asarray(image, np.float32) / np.float32(255)
