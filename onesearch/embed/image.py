"""Image encoders by name: the EfficientNet-Lite0 of a package, or any vision backbone of `transformers`.

A picture is turned upright (EXIF), put on white where it is transparent, and never decoded when it has more than
`MAX_PIXELS`. Every mistake in a file is told with the file's name.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onesearch.embed.text import unit_rows
from onesearch.errors import UserError

MAX_PIXELS: Final = 50_000_000
"""150 MB as RGB; a file of a few kilobytes can claim to hold many more."""
BATCH: Final = 16
Picture = str | Path | Image.Image


class ImageEncoder(Protocol):
    """Turns pictures into vectors of unit length.

    Attributes:
        name: what `load_image_encoder` was given.
        dimension: D, the width of the vectors.
    """

    name: str
    dimension: int

    def encode(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a picture, given as files or as open images."""
        ...


def load_image_encoder(name: str) -> ImageEncoder:
    """The encoder called `name`.

    Args:
        name: `"efficientnet-lite0"` (1280 dimensions, nothing to download), or the hub id or local folder of a vision
            model that `transformers` can load: ViT, DINOv2, ConvNeXt, ResNet, the image side of CLIP or SigLIP, or,
            where `timm` and torchvision are installed, a `timm` checkpoint.
            `HF_HUB_OFFLINE=1` keeps to the hub's local cache.

    Raises:
        UserError: the package or the model is not there, or it is no vision model.
    """
    return EfficientNetEncoder() if name == "efficientnet-lite0" else VisionEncoder(name)


class EfficientNetEncoder:
    """EfficientNet-Lite0 on the whole picture, which is fitted into a white square.

    A deviation from how it was trained (the middle of the picture): a photo of a product shows it from edge to edge.
    """

    name = "efficientnet-lite0"

    def __init__(self) -> None:
        from onesearch.embed.efficientnet import WIDTH, EfficientNetLite0

        self.dimension = WIDTH
        self._model = EfficientNetLite0.pretrained()

    def encode(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a picture."""
        vectors = np.zeros((len(images), self.dimension), np.float32)
        for start in range(0, len(images), BATCH):
            pixels = np.stack([_square(opened(image)) for image in images[start : start + BATCH]])
            with torch.inference_mode():
                seen = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
                vectors[start : start + BATCH] = self._model(seen).numpy()
        return unit_rows(vectors)


class VisionEncoder:
    """A vision backbone through `transformers`, its pictures prepared by its own image processor (the one on PIL).

    A vector is what the model says of the whole picture: `get_image_features` where it also reads texts, else its
    pooled output, else the mean over patches, also where a checkpoint lacks the pooling layer's weights.

    Args:
        name: hub id or local folder.

    Raises:
        UserError: nothing is found there, or it is no vision model, or weights are missing.
    """

    def __init__(self, name: str) -> None:
        from transformers import AutoImageProcessor, AutoModel

        remedy = (
            "give `efficientnet-lite0`, a hub id (downloaded before if HF_HUB_OFFLINE is set) or the model's folder"
        )
        try:
            self._processor: Any = AutoImageProcessor.from_pretrained(name, backend="pil")
            self._model, found = AutoModel.from_pretrained(name, output_loading_info=True)
        except (OSError, ValueError, KeyError, ImportError) as error:  # what hub, configuration and weights raise
            problem = f"cannot load this image encoder: {str(error).strip().splitlines()[0]}"
            raise UserError(problem, place="image encoder", value=name, remedy=remedy) from error
        missing = sorted(found["missing_keys"])
        untrained = [key for key in missing if "pooler" not in key]
        if untrained:
            problem = f"{len(untrained)} weights are missing, {untrained[0]} for one"
            raise UserError(problem, place="image encoder", value=name, remedy=remedy)
        self.name = name
        self._model.eval()
        self._pools = not missing
        try:
            self.dimension = int(self._vectors([Image.new("RGB", (64, 64))]).shape[1])
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            problem = f"this model makes no vector of a picture: {str(error).strip().splitlines()[0]}"
            raise UserError(problem, place="image encoder", value=name, remedy=remedy) from error

    def encode(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        """(n, D) unit vectors, one a picture."""
        vectors = np.zeros((len(images), self.dimension), np.float32)
        for start in range(0, len(images), BATCH):
            vectors[start : start + BATCH] = self._vectors([opened(image) for image in images[start : start + BATCH]])
        return unit_rows(vectors)

    def _vectors(self, pictures: list[Image.Image]) -> NDArray[np.float32]:
        """(n, D) not yet of unit length."""
        pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            if hasattr(self._model, "get_image_features"):
                output = self._model.get_image_features(pixel_values=pixels)
                whole = output if isinstance(output, torch.Tensor) else output.pooler_output
            else:
                output = self._model(pixel_values=pixels)
                whole = getattr(output, "pooler_output", None) if self._pools else None
                if whole is None:
                    hidden = output.last_hidden_state  # (n, patches, D) or (n, D, rows, columns)
                    whole = hidden.mean(dim=(2, 3)) if hidden.ndim == 4 else hidden.mean(dim=1)
        return whole.flatten(1).float().numpy()


def opened(image: Picture) -> Image.Image:
    """The picture as RGB, upright and on white, wholly decoded.

    Raises:
        UserError: there is no such file, it is no picture, it is cut short, or it has too many pixels.
    """
    if isinstance(image, Image.Image):
        return _on_white(image)
    path = Path(image)
    if "://" in str(image):
        raise UserError("a picture must be a file", place="image", value=image, remedy="download it and give its path")
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                problem = f"the picture is too large: {width:,} x {height:,} pixels, at most {MAX_PIXELS:,} in all"
                raise UserError(problem, place=path, remedy="make it smaller, a side of 1,000 pixels is plenty")
            picture.load()
            return _on_white(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise UserError("no such file", place=path, remedy="mend the path in the item's images") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture is too large: {error}", place=path, remedy="make it smaller") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        remedy = "copy or download it again, or take it out of the item's images"
        raise UserError(f"not a readable picture: {error}", place=path, remedy=remedy) from error


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layered = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")


def _square(picture: Image.Image) -> NDArray[np.float32]:
    """(3, 224, 224) in [-1, 1], as EfficientNet-Lite was trained."""
    from onesearch.embed.efficientnet import SIDE

    fitted = ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.BICUBIC, color="white")
    return np.ascontiguousarray(((np.asarray(fitted, np.float32) - 127) / 128).transpose(2, 0, 1))
