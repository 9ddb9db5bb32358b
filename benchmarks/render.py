"""Pictures of triangle meshes: a z-buffer rasteriser in NumPy, enough to see one product from several sides.

Orthographic, flat shading with one light beside the camera, a material's colour or its texture at the nearest texel.
All triangles of a view go through together: each is spread over its rows of pixels, each row over the pixels between
the edges, and a pixel keeps the smallest of the keys `depth << 32 | triangle`. Not meant for beauty: no shadows, no
transparency, no perspective. Faces are seen from both sides: models are not consistent about which is the outer one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

MARGIN: Final = 0.06
"""The empty share at each side of the picture."""
AMBIENT: Final = 0.35
_PIXELS: Final = 1 << 20
"""Pixels of triangles looked at together: bounds the memory where many large triangles lie behind each other."""
_EDGE: Final = 1e-9
"""How far outside a pixel centre may lie, so that no gap opens along a shared edge."""
_DEPTHS: Final = (1 << 31) - 1
_LIGHT: Final = np.array([0.4, 0.5, 0.77]) / np.linalg.norm([0.4, 0.5, 0.77])  # right, up, towards the camera


@dataclass(frozen=True)
class Mesh:
    """F triangles with M materials; y points up.

    Attributes:
        corners: (F, 3, 3) float64 positions.
        uv: (F, 3, 2) float32 texture coordinates; zeros where a material has no texture.
        material: (F,) which material a triangle has.
        colours: (M, 3) float32 in [0, 1].
        textures: M pictures (H, W, 3) float32 in [0, 1], or None where the colour alone counts.
    """

    corners: NDArray[np.float64]
    uv: NDArray[np.float32]
    material: NDArray[np.int64]
    colours: NDArray[np.float32]
    textures: list[NDArray[np.float32] | None]


def render(mesh: Mesh, azimuth: float, elevation: float, size: int, oversampling: int = 2) -> NDArray[np.uint8]:
    """(S, S, 3) a mesh on white, as large as fits.

    Args:
        mesh: at least one triangle.
        azimuth: degrees around the vertical axis; 0 looks at the front (along -z).
        elevation: degrees above the horizon.
        size: S, pixels.
        oversampling: each pixel is the mean of so many times as many a side.
    """
    fine = size * oversampling
    corners, normals = _seen_from(mesh.corners, azimuth, elevation)
    screen = _framed(corners, fine)
    pixel, triangle = _visible(screen, fine)
    light = AMBIENT + (1 - AMBIENT) * np.abs(normals[triangle] @ _LIGHT)
    colour = _colours(mesh, screen, pixel, triangle, fine) * light[:, None]
    picture = np.ones((fine * fine, 3))
    picture[pixel] = np.minimum(colour, 1)
    picture = picture.reshape(size, oversampling, size, oversampling, 3).mean(axis=(1, 3))
    return np.rint(255 * picture).astype(np.uint8)


def _seen_from(
    corners: NDArray[np.float64], azimuth: float, elevation: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(F, 3, 3) corners as right, up, towards the camera, and (F, 3) unit normals (zeros where there is no area)."""
    a, e = np.deg2rad([azimuth, elevation])
    right = np.array([np.cos(a), 0, -np.sin(a)])
    towards = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    turned = corners @ np.stack([right, np.cross(towards, right), towards], axis=1)
    normals = np.cross(turned[:, 1] - turned[:, 0], turned[:, 2] - turned[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return turned, np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)


def _framed(corners: NDArray[np.float64], fine: int) -> NDArray[np.float64]:
    """(F, 3, 3) x to the right and y downwards in pixels, and depth in [0, 1] away from the camera."""
    low, high = corners.min(axis=(0, 1)), corners.max(axis=(0, 1))
    extent = float((high - low)[:2].max())
    scale = fine * (1 - 2 * MARGIN) / extent if extent > 0 else 1.0
    screen = (corners - (low + high) / 2) * [scale, -scale, 1]
    screen[..., :2] += fine / 2
    screen[..., 2] = (high[2] - corners[..., 2]) / max(float(high[2] - low[2]), 1e-300)
    return screen


def _visible(screen: NDArray[np.float64], fine: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) the pixels that show something, and (P,) the foremost triangle of each."""
    low = np.ceil(screen[..., :2].min(axis=1) - 0.5 - _EDGE)
    high = np.floor(screen[..., :2].max(axis=1) - 0.5 + _EDGE)
    holds_a_centre = np.flatnonzero((high >= low).all(axis=1))  # of a fine mesh, few triangles do
    planes, flat = _planes(screen[holds_a_centre])
    drawn, planes = holds_a_centre[~flat], planes[~flat]
    top = low[drawn, 1].clip(0, fine).astype(np.int64)
    rows = np.maximum(high[drawn, 1].clip(-1, fine - 1).astype(np.int64) - top + 1, 0)
    row = np.repeat(np.arange(len(drawn)), rows)
    y = top[row] + _counting(rows)
    left, width = _spans(screen[drawn], planes, row, y, fine)
    ends = np.cumsum(width)
    buffer = np.full(fine * fine, np.iinfo(np.int64).max)
    start = 0
    while start < len(row):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PIXELS, side="right")))
        part = slice(start, stop)
        span = np.repeat(np.arange(start, stop), width[part])
        x = left[span] + _counting(width[part])
        slope_x, slope_y, rest = planes[row[span], 3].T
        depth = (slope_x * (x + 0.5) + slope_y * (y[span] + 0.5) + rest).clip(0, 1)
        key = (np.rint(depth * (_DEPTHS - 1)).astype(np.int64) << 32) | drawn[row[span]]
        np.minimum.at(buffer, y[span] * fine + x, key)
        start = stop
    shown = np.flatnonzero(buffer < np.iinfo(np.int64).max)
    return shown, buffer[shown] & 0xFFFFFFFF


def _spans(
    screen: NDArray[np.float64], planes: NDArray[np.float64], row: NDArray[np.int64], y: NDArray[np.int64], fine: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(R,) the first pixel and (R,) the number of pixels whose centres lie in a triangle, for one row each."""
    left, right = screen[..., 0].min(axis=1)[row], screen[..., 0].max(axis=1)[row]
    for edge in range(3):
        slope, step, rest = planes[row, edge].T
        rest = step * (y + 0.5) + rest
        crossing = np.divide(-rest, slope, out=np.zeros_like(rest), where=slope != 0)
        left = np.where(slope > 0, np.maximum(left, crossing), left)
        right = np.where(slope < 0, np.minimum(right, crossing), right)
        right = np.where((slope == 0) & (rest < -_EDGE), -1.0, right)
    first = np.ceil(left - 0.5 - _EDGE).clip(0, fine).astype(np.int64)
    last = np.floor(right - 0.5 + _EDGE).clip(-1, fine - 1).astype(np.int64)
    return first, np.maximum(last - first + 1, 0)


def _planes(screen: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(F, 4, 3) a, b, c so that `a x + b y + c` is the weight of a corner, or (last) the depth; (F,) has no area."""
    x, y = screen[..., 0], screen[..., 1]
    following, before = [1, 2, 0], [2, 0, 1]
    weights = np.stack(
        [
            y[:, following] - y[:, before],
            x[:, before] - x[:, following],
            x[:, following] * y[:, before] - x[:, before] * y[:, following],
        ],
        axis=2,
    )
    area = weights[:, :, 2].sum(axis=1)
    flat = np.abs(area) < 1e-9
    weights = np.divide(weights, area[:, None, None], out=np.zeros_like(weights), where=~flat[:, None, None])
    return np.concatenate([weights, np.einsum("fc,fck->fk", screen[..., 2], weights)[:, None]], axis=1), flat


def _counting(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... for each of these lengths, one after the other.

    >>> _counting(np.array([2, 0, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _colours(
    mesh: Mesh, screen: NDArray[np.float64], pixel: NDArray[np.int64], triangle: NDArray[np.int64], fine: int
) -> NDArray[np.float64]:
    """(P, 3) of the visible pixels, unlit."""
    material = mesh.material[triangle]
    colour = mesh.colours[material].astype(np.float64)
    for which in np.unique(material):
        texture = mesh.textures[which]
        if texture is None:
            continue
        here = np.flatnonzero(material == which)
        planes, _ = _planes(screen[triangle[here]])
        centre = np.stack([pixel[here] % fine + 0.5, pixel[here] // fine + 0.5, np.ones(len(here))], axis=1)
        weights = np.einsum("pck,pk->pc", planes[:, :3], centre)
        u, v = (np.einsum("pc,pck->kp", weights, mesh.uv[triangle[here]])) % 1.0
        rows, columns = texture.shape[:2]
        colour[here] = texture[
            np.minimum(((1 - v) * rows).astype(np.int64), rows - 1),
            np.minimum((u * columns).astype(np.int64), columns - 1),
        ]
    return colour
