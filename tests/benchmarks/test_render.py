import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import render as rendering
from benchmarks.render import AMBIENT, Mesh, render

RED, GREEN, BLUE, GREY = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)


def square(z: float = 0.0) -> NDArray[np.float64]:
    """Two triangles over [-1, 1] x [-1, 1], facing +z."""
    a, b, c, d = (-1, -1, z), (1, -1, z), (1, 1, z), (-1, 1, z)
    return np.array([(a, b, c), (a, c, d)], np.float64)


def mesh(*parts: tuple[NDArray[np.float64], tuple[float, float, float]]) -> Mesh:
    corners = np.concatenate([part for part, _ in parts])
    material = np.repeat(np.arange(len(parts)), [len(part) for part, _ in parts])
    colours = np.array([colour for _, colour in parts], np.float32)
    return Mesh(corners, np.zeros((len(corners), 3, 2), np.float32), material, colours, [None] * len(parts))


def cube() -> Mesh:
    """Red at +x, green at +y, blue at +z, grey at the other sides."""
    front = square(1.0)
    top, right = front[..., [0, 2, 1]], front[..., [2, 1, 0]]
    return mesh((right, RED), (top, GREEN), (front, BLUE), (-right, GREY), (-top, GREY), (-front, GREY))


def test_a_square_fills_the_picture_but_for_the_margin_and_is_lit_by_its_angle() -> None:
    picture = render(mesh((square(), RED)), 0, 0, size=100, oversampling=1)
    # the light is 0.77 towards the camera, scaled to unit length with 0.4 and 0.5 aside
    light = AMBIENT + (1 - AMBIENT) * 0.77 / np.sqrt(0.4**2 + 0.5**2 + 0.77**2)
    expected = np.full((100, 100, 3), 255)
    expected[6:94, 6:94] = [round(255 * light), 0, 0]
    np.testing.assert_array_equal(picture, expected)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "channel"),
    [(0, 0, 2), (90, 0, 0), (0, 90, 1), (360, 0, 2), (180, 0, None), (270, 0, None)],
)
def test_each_side_of_a_cube_is_seen_from_its_side(azimuth: float, elevation: float, channel: int | None) -> None:
    middle = render(cube(), azimuth, elevation, size=20)[10, 10]
    if channel is None:
        assert middle[0] == middle[1] == middle[2] < 128
    else:
        assert np.flatnonzero(middle).tolist() == [channel]


def test_at_45_degrees_the_front_is_to_the_left_and_the_top_above() -> None:
    picture = render(cube(), 45, 30, size=60)
    assert np.flatnonzero(picture[40, 20]).tolist() == [2]
    assert np.flatnonzero(picture[40, 40]).tolist() == [0]
    assert np.flatnonzero(picture[10, 30]).tolist() == [1]


def test_what_is_in_front_hides_what_is_behind() -> None:
    small = square(0.5) * [0.5, 0.5, 1]
    both = mesh((square(), RED), (small, BLUE))
    front, back = render(both, 0, 0, size=40), render(both, 180, 0, size=40)
    assert np.flatnonzero(front[20, 20]).tolist() == [2]
    assert np.flatnonzero(front[5, 5]).tolist() == [0]
    assert np.flatnonzero(back[20, 20]).tolist() == [0]


def test_a_texture_lies_where_its_coordinates_say() -> None:
    uv = ((square()[..., :2] + 1) / 2).astype(np.float32)
    texture = np.array([[RED, GREEN], [BLUE, GREY]], np.float32)  # rows from above
    picture = render(
        Mesh(square(), uv, np.zeros(2, np.int64), np.ones((1, 3), np.float32), [texture]), 0, 0, size=40, oversampling=1
    )
    quarters = [picture[10, 10], picture[10, 30], picture[30, 10]]
    assert [np.flatnonzero(quarter).tolist() for quarter in quarters] == [[0], [1], [2]]
    assert picture[30, 30, 0] == picture[30, 30, 1] == picture[30, 30, 2] > 0


def foremost(screen: NDArray[np.float64], fine: int) -> dict[int, tuple[float, set[int]]]:
    """For each pixel whose centre is well inside a triangle: its depth, and the triangles at that depth. By hand."""
    found: dict[int, tuple[float, set[int]]] = {}
    for pixel in range(fine * fine):
        point = np.array([pixel % fine + 0.5, pixel // fine + 0.5])
        depths = {}
        for number, (a, b, c) in enumerate(screen):
            edges = np.stack([b[:2] - a[:2], c[:2] - a[:2]], axis=1)
            if abs(np.linalg.det(edges)) < 1e-6:
                continue
            along = np.linalg.solve(edges, point - a[:2])
            if along.min() >= 0 and along.sum() <= 1:
                depths[number] = float(a[2] + along @ [b[2] - a[2], c[2] - a[2]])
        if depths:
            least = min(depths.values())
            found[pixel] = least, {number for number, depth in depths.items() if depth < least + 1e-6}
    return found


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), triangles=st.integers(1, 12), spread=st.sampled_from([2.0, 6.0, 20.0]))
def test_every_pixel_shows_the_foremost_triangle(seed: int, triangles: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    centre = np.append(rng.uniform(-2, 12, 2), 0.5)
    screen = centre + rng.uniform(-1, 1, (triangles, 3, 3)) * [spread, spread, 0.5]
    pixel, triangle = rendering._visible(screen, 10)
    expected = foremost(screen, 10)
    assert pixel.tolist() == sorted(expected)
    assert all(which in expected[place][1] for place, which in zip(pixel.tolist(), triangle.tolist(), strict=True))


def test_no_gap_opens_between_triangles(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 200))
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(200)], axis=1) * 100 + [50, 50, 0]
    hub = np.broadcast_to([50.123, 49.77, 0], rim.shape)
    fan = np.stack([hub, rim, np.roll(rim, -1, axis=0)], axis=1)
    pixel, triangle = rendering._visible(fan, 100)
    assert len(pixel) == 10_000
    monkeypatch.setattr(rendering, "_PIXELS", 7)  # in how many pieces must not matter
    again = rendering._visible(fan, 100)
    np.testing.assert_array_equal(again[1], triangle)


def test_a_mesh_that_is_seen_edge_on_or_has_no_size_leaves_the_picture_white() -> None:
    assert (render(mesh((square(), RED)), 90, 0, size=8) == 255).all()
    assert (render(mesh((0 * square(), RED)), 0, 0, size=8) == 255).all()
