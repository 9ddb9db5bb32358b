from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from onesearch.embed.image import Picture, opened
from onesearch.embed.text import unit_rows
from onesearch.embed.views import Views, embed_views, load_views
from onesearch.errors import UserError


class MeanColour:
    """A real encoder, if a simple one, that notes what it was asked for."""

    name, dimension = "mean colour", 3

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, images: Sequence[Picture]) -> NDArray[np.float32]:
        self.asked += [Path(str(image)).name for image in images]
        return unit_rows(
            np.array([np.asarray(opened(image)).mean((0, 1)) for image in images], np.float32).reshape(-1, 3)
        )


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, colour in (("red", "#ff0000"), ("green", "#00ff00"), ("grey", "#808080"), ("blue", "#0000ff")):
        Image.new("RGB", (2, 2), colour).save(tmp_path / f"{name}.png")
    return tmp_path


IMAGES = [["red.png", "green.png"], None, ["blue.png"], [], ["red.png", "blue.png", "grey.png"]]


def test_offsets_say_which_views_are_of_which_item(shop: Path) -> None:
    encoder = MeanColour()
    views = embed_views(IMAGES, encoder, shop / "out", root=shop)
    assert views.offsets.tolist() == [0, 2, 2, 3, 3, 6]
    assert views.item.tolist() == [0, 0, 2, 4, 4, 4]
    assert sorted(encoder.asked) == ["blue.png", "green.png", "grey.png", "red.png"]  # the same file once
    third = np.sqrt(1 / 3)
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [third] * 3]
    np.testing.assert_allclose(views.vectors, expected, atol=1e-6)


def test_an_item_is_the_mean_of_its_views(shop: Path) -> None:
    items = embed_views(IMAGES, MeanColour(), shop / "out", root=shop).item_vectors()
    half = np.sqrt(1 / 2)
    last = np.array([1, 0, 1]) + np.sqrt(1 / 3)
    expected = [[half, half, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], last / np.linalg.norm(last)]
    np.testing.assert_allclose(items, expected, atol=1e-6)


def test_what_was_written_is_read_back(shop: Path) -> None:
    views = embed_views(IMAGES, MeanColour(), shop / "out", root=shop)
    again = load_views(shop / "out")
    np.testing.assert_array_equal(again.vectors, views.vectors)
    np.testing.assert_array_equal(again.offsets, views.offsets)
    np.save(shop / "out" / "offsets.npy", views.offsets[:-1])
    with pytest.raises(UserError, match="6 vectors, but the items have 3 pictures"):
        load_views(shop / "out")
    with pytest.raises(UserError, match="no vectors of pictures here"):
        load_views(shop)


def test_a_catalogue_without_pictures_has_no_views(shop: Path) -> None:
    views = embed_views([None, []], MeanColour(), shop / "out", root=shop)
    assert views.vectors.shape == (0, 3)
    assert views.item_vectors().tolist() == [[0, 0, 0], [0, 0, 0]]
    assert load_views(shop / "out").offsets.tolist() == [0, 0, 0]
    assert Views(views.vectors, np.zeros(1, np.int64)).item_vectors().shape == (0, 3)


def test_a_mended_picture_does_not_cost_the_work_before_it(shop: Path) -> None:
    whole = (shop / "blue.png").read_bytes()
    (shop / "blue.png").write_bytes(whole[:40])
    with pytest.raises(UserError, match=r"blue\.png: not a readable picture"):
        embed_views(IMAGES, MeanColour(), shop / "out", root=shop, batch=2)
    (shop / "blue.png").write_bytes(whole)
    encoder = MeanColour()
    views = embed_views(IMAGES, encoder, shop / "out", root=shop, batch=2)
    assert encoder.asked == ["red.png", "blue.png", "grey.png"]  # the first one checks that it is the same encoder
    np.testing.assert_array_equal(views.vectors, embed_views(IMAGES, MeanColour(), shop / "new", root=shop).vectors)


@pytest.mark.parametrize("whole", [True, False])
def test_a_changed_picture_makes_everything_anew(shop: Path, whole: bool) -> None:
    out = shop / "out"
    if whole:
        embed_views(IMAGES, MeanColour(), out, root=shop)
    else:
        saved = (shop / "grey.png").read_bytes()
        (shop / "grey.png").write_bytes(b"")
        with pytest.raises(UserError):
            embed_views(IMAGES, MeanColour(), out, root=shop, batch=2)
        (shop / "grey.png").write_bytes(saved)
    Image.new("RGB", (2, 3), "#0000ff").save(shop / "green.png")
    views = embed_views(IMAGES, MeanColour(), out, root=shop)
    assert views.vectors[1].tolist() == [0, 0, 1]


def test_all_files_are_looked_for_before_the_work_begins(shop: Path) -> None:
    encoder = MeanColour()
    for absent, problem in (("absent.png", "no such file"), ("https://shop.example/1.png", "must be a file")):
        with pytest.raises(UserError, match=problem) as told:
            embed_views([*IMAGES, [absent]], encoder, shop / "out", root=shop)
        assert absent in str(told.value)
    assert not encoder.asked
