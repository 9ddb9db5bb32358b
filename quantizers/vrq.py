"""VRQ: residual codes whose first levels all views of a product share, and whose last levels tell products apart.

After OneVision (https://arxiv.org/abs/2510.05759): views of a product (photos, texts, the searches for it) are brought
together at the shallow levels, a category feature shapes them, deep levels distinguish, and an optimized product
quantizer codes what is left of the item. The paper's formulas are not known to us, so what follows is our completion of
its description:

    z = W x / |W x|      one view, centred and scaled before; W is a discriminant analysis with products as its classes
    z_p                  the item: the mean of its views' z, brought back to length 1
    c_l, l <= S          residual k-means of z_p; at level 1 of (z_p, category), a category being a direction of its own
    r = x_p - sum_l V_l[c_l]    what the shallow codes leave of the item's mean view; V_l is the (shrunk) mean residual
    c_l, l > S           residual k-means of R r, the last level balanced; R makes r equally long in all directions, and
                         centroids are those of R r less its (shrunk) mean over items of equal shallow codes, so that
                         they lie where such items differ
    tail                 optimized product quantization of what all of these leave of the item's mean view

A query is one view and has no category, so no code is chosen by it: it only decides which items make a centroid.

Deviates from the paper: there, contrastive and circle losses are learned by gradient. A projection learned so (InfoNCE
of two views and of their codes, commitment, cross-entropy of the category, a margin between items of one cell) was
measured: it is ahead on products it has seen and behind on new ones (docs/tokenizers.md). The discriminant is closed
form, and its shrinkage is for new products (`quantizers/shared_prefixes.py`).

Fewer items than codes are fine: the codes that are left over are used by none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from quantizers.codebooks import encode_residuals, find_codebooks, find_used_sizes, name_codebooks, sum_codes
from quantizers.folder import saved, write_folder
from quantizers.kmeans import balanced_kmeans, kmeans
from quantizers.metrics import prefix_ids
from quantizers.nearest import nearest
from quantizers.network import Layers, apply_layers, find_layers, name_layers
from quantizers.parallel import one_openmp_thread
from quantizers.product import fit_parts
from quantizers.rows import Centre, check_shape, codes_of, finite_blocks
from quantizers.shared_prefixes import Sample, distinct_projection, draw_products, shared_projection, sums_by

_SETTINGS: Final = ("shallow", "tail", "category_weight", "seed")
_ITERATIONS: Final = 25  # of k-means
_POINTS_PER_CODE: Final = 256
_PRIOR: Final = 0.5  # products at the mean of all that each code and each cell is thought to have besides its own
_CATEGORIES: Final = 128  # dimensions, at most, in which categories are directions of their own


class VRQ:
    """S shallow codebooks that views of a product share, deep ones, and the parts of a tail.

    Args:
        level_sizes: L numbers of codes.
        shallow: S, how many of the first levels all views of a product should share.
        tail: T equal numbers of codes of the parts of the last residual, as in `ResidualKMeans`.
        category_weight: how far apart items of different categories are taken to be at level 1, as a share of the root
            mean square distance of an item from the mean item. More makes codes purer and views agree less.
        seed: of the sample and the codebooks.

    Attributes:
        level_sizes: L + T numbers, those of the tail last.
        codebooks: L + T arrays (k_l, D) float32, k_l <= K_l: of z at the shallow levels, of R r at the deep
            ones, of the vectors themselves in the tail.
    """

    def __init__(
        self,
        level_sizes: Sequence[int] = (256, 256, 256),
        shallow: int = 2,
        tail: Sequence[int] = (),
        category_weight: float = 0.5,
        seed: int = 0,
    ) -> None:
        if not level_sizes or min(level_sizes) < 1:
            raise ValueError(f"level_sizes must be one or more positive numbers, not {level_sizes!r}")
        if not 1 <= shallow <= len(level_sizes):
            raise ValueError(f"shallow must be from 1 to the number of levels, {len(level_sizes)}, not {shallow}")
        if tail and (min(tail) < 1 or len(set(tail)) > 1):
            raise ValueError(f"the parts of the tail must have equal positive sizes, not {tuple(tail)}")
        if not 0 <= category_weight < np.inf:
            raise ValueError(f"category_weight must not be negative, and finite, not {category_weight!r}")
        self.tail, self.shallow = tuple(int(size) for size in tail), int(shallow)
        self.level_sizes = (*(int(size) for size in level_sizes), *self.tail)
        self.category_weight, self.seed = float(category_weight), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self._values: list[NDArray[np.float32]] = []
        self._prices: list[NDArray[np.float32]] = []
        self._shared: Layers = []
        self._distinct: Layers = []
        self._centre = Centre(np.zeros(0, np.float32), np.float32(1))

    def fit(
        self,
        x: NDArray[np.floating],
        product: NDArray[np.integer] | None = None,
        category: NDArray[np.integer] | None = None,
    ) -> Self:
        """Learn from views of products: of a sample of the products, where they are very many.

        Args:
            x: (N, D) the views, which may be a memory map.
            product: (N,) which product each shows, any numbers; by default each view is of its own.
            category: (N,) the category of each, -1 where it is unknown; views of one product should not contradict.

        Raises:
            ValueError: there is no vector, one is not finite (its row is named), or the shapes do not fit.
        """
        check_shape(x, None)
        for name, given in (("product", product), ("category", category)):
            if given is not None and given.shape != (len(x),):
                raise ValueError(f"{name} has the shape {given.shape}, expected {(len(x),)}: one for each vector")
        index = np.arange(len(x)) if product is None else np.unique(product, return_inverse=True)[1]
        of_product = np.full(int(index.max()) + 1, -1, np.int64)
        if category is not None:
            np.maximum.at(of_product, index, category)
        centre = Centre.of(x)
        most = _POINTS_PER_CODE * max(self.level_sizes)
        with one_openmp_thread():
            self._fit(draw_products(x, centre, index, of_product, most, self.seed))
        self._centre = centre
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) single views to (N, L + T) codes, level by level the nearest.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """

        def code(block: NDArray[np.float32]) -> NDArray[np.int32]:
            seen = self._centre.remove(block)
            return self._codes(self._project(seen).astype(np.float32), seen)

        return codes_of(x, self._width(), len(self.level_sizes), code)

    def encode_products(self, x: NDArray[np.floating], product: NDArray[np.integer]) -> NDArray[np.int32]:
        """(N, D) views, (N,) which product each shows -> (P, L + T) codes of the P products, by ascending number.

        A product's codes are those of the mean over its views.

        Raises:
            ValueError: as `encode`, or there is not one product for each view.
        """
        check_shape(x, self._width())
        if product.shape != (len(x),):
            raise ValueError(f"product has the shape {product.shape}, expected {(len(x),)}: one for each vector")
        ids, index = np.unique(product, return_inverse=True)
        total, means = np.zeros((len(ids), x.shape[1])), np.zeros((len(ids), x.shape[1]))
        for start, block in finite_blocks(x):
            seen, part = self._centre.remove(block), index[start : start + len(block)]
            total += sums_by(part, self._project(seen), len(ids))
            means += sums_by(part, seen, len(ids))
        means /= np.bincount(index, minlength=len(ids))[:, None]
        return self._codes(_unit(total).astype(np.float32), means.astype(np.float32))

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L + T levels to (N, D) vectors of products; fewer levels say less.

        Raises:
            ValueError: not fitted, too many levels, or a code that its level does not have.
        """
        self._width()
        return self._centre.restore(sum_codes(codes, self._values))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `config.json` and `model.safetensors`."""
        config = {
            "class": "VRQ",
            "width": self._width(),
            "level_sizes": list(self.level_sizes[: self._levels]),
            **{name: getattr(self, name) for name in _SETTINGS},
            "used_sizes": [len(codebook) for codebook in self.codebooks],
        }
        tensors = name_codebooks(self.codebooks) | self._centre.tensors()
        tensors |= {f"value_{level}": value for level, value in enumerate(self._values)}
        tensors |= {f"prices_{level}": prices for level, prices in enumerate(self._prices)}
        tensors |= name_layers("shared", self._shared) | name_layers("distinct", self._distinct)
        write_folder(Path(folder), config, tensors)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        with saved(folder, "VRQ") as (config, tensors):
            width = int(config["width"])
            quantizer = cls(config["level_sizes"], **{name: config[name] for name in _SETTINGS})
            quantizer._shared = find_layers("shared", tensors, (width, width))
            quantizer._distinct = find_layers("distinct", tensors, (width, width))
            quantizer._centre = Centre.find(tensors, width)
            used = find_used_sizes(config, quantizer.level_sizes)
            quantizer.codebooks = find_codebooks(tensors, used, width)
            values = {f"codebook_{level}": tensors[f"value_{level}"] for level in range(len(used))}
            quantizer._values = find_codebooks(values, used, width)
            quantizer._prices = [tensors[f"prices_{level}"] for level in range(len(used))]
            if [prices.shape for prices in quantizer._prices] != [(size,) for size in used]:
                raise ValueError("prices and codebooks differ in size")
        return quantizer

    @property
    def _levels(self) -> int:
        """L, the levels before the tail."""
        return len(self.level_sizes) - len(self.tail)

    def _width(self) -> int:
        if not self.codebooks:
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return len(self._centre.mean)

    def _project(self, seen: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) centred -> (N, D) unit vectors z, or zeros."""
        return _unit(apply_layers(self._shared, seen).astype(np.float64))

    def _codes(self, z: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N, D) z, (N, D) centred vectors -> (N, L + T); all parts of the tail code what the last level leaves."""
        codes = encode_residuals(z, self.codebooks[: self.shallow])
        left = apply_layers(self._distinct, seen - sum_codes(codes, self._values))
        for level in range(self.shallow, self._levels):
            code = nearest(left, self.codebooks[level], self._prices[level])
            codes, left = np.column_stack([codes, code]), left - self.codebooks[level][code]
        if self.tail:
            rest = seen - sum_codes(codes, self._values)
            parts = zip(self.codebooks[self._levels :], self._prices[self._levels :], strict=True)
            codes = np.column_stack([codes, *(nearest(rest, book, prices) for book, prices in parts)])
        return codes

    def _fit(self, sample: Sample) -> None:
        """Projections, codebooks and what codes stand for."""
        width, products = sample.views.shape[1], len(sample.category)
        self._shared = [(shared_projection(sample), np.zeros(width, np.float32))]
        z = _unit(sums_by(sample.product, self._project(sample.views), products)).astype(np.float32)
        left = sample.means().astype(np.float32)
        self.codebooks, self._values, self._prices = [], [], []
        cell = np.zeros(products, np.int64)  # of items with equal codes so far
        for level in range(self.shallow):
            told = np.concatenate([z, self._categories(z, sample.category)], axis=1) if level == 0 else z
            centroids = kmeans(told, self.level_sizes[level], _ITERATIONS, self.seed + level)
            book = np.ascontiguousarray(centroids[:, :width])
            code = nearest(z, book).astype(np.int64)
            value = _shrunk_means(code, left, len(book))
            z, left = z - book[code], left - value[code]
            cell = prefix_ids(np.column_stack([cell, code]))[:, -1]
            self._keep(book, value)
        self._fit_deep(left, cell)

    def _fit_deep(self, left: NDArray[np.float32], cell: NDArray[np.int64]) -> None:
        """The levels and the tail that code (P, D) what shallow levels leave, (P,) whose codes make the cells."""
        projection = distinct_projection(left)
        self._distinct = [(projection, np.zeros(len(projection), np.float32))]
        even = apply_layers(self._distinct, left)
        for level in range(self.shallow, self._levels):
            size, seed = self.level_sizes[level], self.seed + level
            apart = even - _shrunk_means(cell, even, int(cell.max()) + 1)[cell]
            if level + 1 < self._levels:
                book, prices = kmeans(apart, size, _ITERATIONS, seed), None
            else:
                book, prices = balanced_kmeans(apart, size, 1.0, _ITERATIONS, seed)
            code = nearest(even, book, prices).astype(np.int64)
            value = _shrunk_means(code, left, len(book))
            even, left = even - book[code], left - value[code]
            self._keep(book, value, prices)
        if self.tail:
            for book, prices in fit_parts(left, len(self.tail), self.tail[0], _ITERATIONS, self.seed + self._levels):
                self._keep(book, book, prices)

    def _keep(
        self, codebook: NDArray[np.float32], value: NDArray[np.float32], prices: NDArray[np.float32] | None = None
    ) -> None:
        self.codebooks.append(codebook)
        self._values.append(value)
        self._prices.append(np.zeros(len(codebook), np.float32) if prices is None else prices)

    def _categories(self, z: NDArray[np.float32], category: NDArray[np.int64]) -> NDArray[np.float32]:
        """(P, D) items, (P,) their categories -> (P, E) what is put beside them at level 1; zeros where unknown.

        A unit vector a category, orthogonal or (where categories are very many) nearly so, times the weight.
        """
        known = category >= 0
        names, of_item = np.unique(category[known], return_inverse=True)
        directions = np.eye(len(names))
        if len(names) > _CATEGORIES:
            directions = _unit(np.random.default_rng(self.seed).standard_normal((len(names), _CATEGORIES)))
        spread = np.square(z - z.mean(axis=0, dtype=np.float64)).sum(axis=1).mean()
        beside = np.zeros((len(z), directions.shape[1]), np.float32)
        beside[known] = (self.category_weight * np.sqrt(spread) * directions)[of_item]
        return beside


def _shrunk_means(group: NDArray[np.int64], x: NDArray[np.float32], groups: int) -> NDArray[np.float32]:
    """(P,) groups in 0..G-1, (P, D) -> (G, D) the mean of each group and of `_PRIOR` zeros."""
    mass = np.bincount(group, minlength=groups) + _PRIOR
    means: NDArray[np.float32] = (sums_by(group, x, groups) / mass[:, None]).astype(np.float32)
    return means


def _unit(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, d) rows at length 1; a zero row stays zero. Float64 hides in which order squares were added."""
    length = np.sqrt(np.square(z).sum(axis=1, keepdims=True))
    return np.divide(z, length, out=np.zeros_like(z), where=length > 0)
