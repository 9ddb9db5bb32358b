"""Where views of a product look alike, and where products differ: the two projections of VRQ, in closed form.

Within-class covariance normalization (https://www.isca-archive.org/interspeech_2006/hatch06_interspeech.html) and
linear discriminant analysis, with a product as the class: directions in which views of one product differ are turned
down. The scatter is shrunk towards equal variance in all directions (after
https://doi.org/10.1016/S0047-259X(03)00096-4, but by a fixed share).

All matrices are float64 and come from one thread of the linear algebra library: sums in another order would give other
codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantizers.rows import Centre, check_finite

SHRINKAGE: Final = 0.1  # share of equal variance in the scatter within products
FLOOR: Final = 0.01  # of the mean square of a number: the least variance that views of a product are thought to have
DISTINCT_FLOOR: Final = 0.005  # of the largest variance of what shallow codes leave, added to every direction's
SAMPLE_NUMBERS: Final = 1 << 26  # a quarter of a gigabyte in float32
_ROWS: Final = 16_384


@dataclass(frozen=True)
class Sample:
    """All views of some products.

    Attributes:
        views: (V, D) float32, centred and scaled.
        product: (V,) numbers 0 to P - 1.
        category: (P,) number of each product's category, -1 where it is unknown.
    """

    views: NDArray[np.float32]
    product: NDArray[np.int64]
    category: NDArray[np.int64]

    def means(self) -> NDArray[np.float64]:
        """(P, D) the mean view of each product."""
        return sums_by(self.product, self.views, len(self.category)) / self.count()[:, None]

    def count(self) -> NDArray[np.int64]:
        """(P,) how many views each product has."""
        return np.bincount(self.product, minlength=len(self.category))


def draw_products(
    x: NDArray[np.floating],
    centre: Centre,
    index: NDArray[np.int64],
    category: NDArray[np.int64],
    most: int,
    seed: int,
) -> Sample:
    """(N, D) views, (N,) their products 0..P-1, (P,) categories -> at most `most` products, `SAMPLE_NUMBERS` or one."""
    count = np.bincount(index)
    drawn = np.random.default_rng(seed).permutation(len(count))[:most]
    room = np.searchsorted(np.cumsum(count[drawn]), SAMPLE_NUMBERS // x.shape[1], side="right")
    kept = np.sort(drawn[: max(1, int(room))])
    rows = np.flatnonzero(np.isin(index, kept))
    views = np.empty((len(rows), x.shape[1]), np.float32)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        views[start : start + len(part)] = centre.remove(x[part])
    check_finite(views, rows)
    return Sample(views, np.searchsorted(kept, index[rows]), category[kept])


def shared_projection(sample: Sample) -> NDArray[np.float32]:
    """(D, D) rows: what a view says of its product, along discriminant directions.

    Let views of a product differ by variance 1 in each direction (that is what whitening their scatter does) and
    products by b: then b / (b + 1) of what is seen in a view is expected of its product (Wiener's filter). It is
    applied twice: so codes tell new products apart better (measured, docs/tokenizers.md).
    """
    means, count = sample.means(), sample.count()
    width = means.shape[1]
    scatter = np.zeros((width, width))
    for start in range(0, len(sample.views), _ROWS):
        rows = slice(start, start + _ROWS)
        rest = sample.views[rows] - means[sample.product[rows]]
        scatter += rest.T @ rest
    scatter /= max(1, len(sample.views) - len(means))
    alike = max(np.trace(scatter) / width, FLOOR)
    whiten = np.linalg.inv(np.linalg.cholesky((1 - SHRINKAGE) * scatter + SHRINKAGE * alike * np.eye(width)))
    white = means @ whiten.T
    between = white.T @ white / len(white) - whiten @ scatter @ whiten.T * (1 / count).mean()
    variance, axes = np.linalg.eigh(between)
    products = np.clip(variance, 0, None)
    return (np.square(products / (products + 1))[:, None] * (axes.T @ whiten)).astype(np.float32)


def distinct_projection(left: NDArray[np.float32]) -> NDArray[np.float32]:
    """(P, D) what shallow codes leave of products -> (D, D) rows that make it equally long everywhere.

    Squared distances then count directions alike, and many of them tell products apart, not the longest few.
    """
    scatter = np.zeros((left.shape[1], left.shape[1]))
    for start in range(0, len(left), _ROWS):
        rest = left[start : start + _ROWS].astype(np.float64)
        scatter += rest.T @ rest
    variance, axes = np.linalg.eigh(scatter / len(left))
    top = float(variance[-1])
    length = np.sqrt(np.clip(variance, 0, None) + (DISTINCT_FLOOR * top if top > 0 else 1.0))
    projection: NDArray[np.float32] = (axes / length).T.astype(np.float32)
    return projection


def sums_by(index: NDArray[np.int64], x: NDArray[np.floating], groups: int) -> NDArray[np.float64]:
    """(N,) groups in 0..G-1, (N, D) -> (G, D) the sum of each group's rows, in their order."""
    total = np.zeros((groups, x.shape[1]))
    if len(x):
        order = np.argsort(index, kind="stable")
        first = np.flatnonzero(np.diff(index[order], prepend=-1))
        total[index[order[first]]] = np.add.reduceat(x[order], first, axis=0, dtype=np.float64)
    return total
