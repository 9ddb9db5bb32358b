"""VRQ: residual codes whose first levels all views of a product share, and whose last levels tell products apart.

After OneVision (https://arxiv.org/abs/2510.05759): views of a product (photos, texts, the searches for it) are brought
together at the shallow levels by a contrastive loss, a category feature shapes them, deep levels distinguish, and an
optimized product quantizer codes what is left of the item. The paper's formulas are not known to us, so what follows is
our completion of its description, and so are all weights:

    z = W x / |W x|          one view, centred and scaled before
    z_p                      the item: the mean of its views' z, brought back to length 1
    q^(l) = sum_{j<=l} C_j[c_j]
    loss = |V q_p - x_p|^2 + 0.25 sum_l |z_p - sg(q_p^(l))|^2     the item is reconstructed, not the view
         + mean_{l<=S} InfoNCE(q_a^(l), q_b^(l))                   of two views; the other items are the negatives
         + mean_{l<=S} CE(c_l of the item | z_a - q_p^(l-1))       of every view
         + CE(category | q_p^(1))
         + [1 - |z_p - z_o|^2 / m^2]_+                             of items p and o with the same first S codes

Gradients pass codes straight through; W starts as a linear discriminant analysis, which turns down the directions in
which views of one product differ; for the first fifth of the steps it learns without codes (z in the place of q, and
only what then makes sense of the loss); codebooks are moving averages that start from k-means. Without care the views
agree best when there is one code only: so while learning, items are assigned to shallow codes by Sinkhorn's balance. m
is twice the root of the mean squared distance that the last level leaves. When the projection is learned, the deep
codebooks are fitted anew, by k-means, to what the shallow ones leave of the items, and V by least squares. Differs from
the paper: the category is what q^(1) must say, not part of the input, because a query has none; no circle loss.

What to expect: where views differ in fixed directions (as in the tests), the discriminant start alone brings most of
the agreement; the steps after it trade some of that for items that are told apart. `steps=5, learning_rate=1e-6` shows
the start alone.

Fewer items than codes are fine: the codes that are left over are used by none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from quantizers.codebooks import encode_residuals, find_codebooks, find_used_sizes, name_codebooks, sum_codes
from quantizers.folder import read_config, read_tensors, write_folder
from quantizers.kmeans import kmeans
from quantizers.learning import check_settings, one_thread_and_seed, random_rows
from quantizers.nearest import nearest
from quantizers.network import Layers, apply_layers, find_layers, name_layers
from quantizers.product import fit_parts
from quantizers.rows import Centre, check_shape, codes_of, finite_blocks
from quantizers.shared_prefixes import Views, learn_shared_prefixes

_SETTINGS: Final = ("shallow", "tail", "projection", "steps", "batch", "learning_rate", "seed")
_ITERATIONS: Final = 25  # of k-means, at the end
_POINTS_PER_CODE: Final = 256
_RIDGE: Final = 1e-6  # of the mean square of a coordinate


class VRQ:
    """A projection, S shallow codebooks that views share, deep ones, and the parts of a tail.

    Args:
        level_sizes: L numbers of codes.
        shallow: S, how many of the first levels all views of a product should share.
        tail: T equal numbers of codes of the parts of the last residual, as in `ResidualKMeans`.
        projection: width of z, at most that of the vectors.
        steps: of the optimizer (Adam).
        batch: products a step, two views of each.
        learning_rate: at the start.
        seed: of the batches, the views and the codebooks.

    Attributes:
        level_sizes: L + T numbers, those of the tail last.
        codebooks: L + T arrays (k_l, d) float32, k_l <= K_l.
    """

    def __init__(
        self,
        level_sizes: Sequence[int] = (256, 256, 256),
        shallow: int = 2,
        tail: Sequence[int] = (),
        projection: int = 128,
        steps: int = 1000,
        batch: int = 512,
        learning_rate: float = 3e-3,
        seed: int = 0,
    ) -> None:
        check_settings(
            learning_rate,
            level_sizes=level_sizes,
            shallow=shallow,
            tail=[1, *tail],
            projection=projection,
            steps=steps,
            batch=batch,
        )
        if shallow > len(level_sizes):
            raise ValueError(f"shallow must be at most the number of levels, {len(level_sizes)}, not {shallow}")
        if len(set(tail)) > 1:
            raise ValueError(f"the parts of the tail must have equal sizes, not {tuple(tail)}")
        self.tail, self.shallow = tuple(int(size) for size in tail), int(shallow)
        self.level_sizes = (*(int(size) for size in level_sizes), *self.tail)
        self.projection, self.steps, self.batch = int(projection), int(steps), int(batch)
        self.learning_rate, self.seed = float(learning_rate), int(seed)
        self.codebooks: list[NDArray[np.float32]] = []
        self._prices: list[NDArray[np.float32]] = []
        self._encoder: Layers = []
        self._decoder: Layers = []
        self._centre = Centre(np.zeros(0, np.float32), np.float32(1))

    def fit(
        self,
        x: NDArray[np.floating],
        product: NDArray[np.integer] | None = None,
        category: NDArray[np.integer] | None = None,
    ) -> Self:
        """Learn from views of products.

        Args:
            x: (N, D) the views, which may be a memory map.
            product: (N,) which product each shows, any numbers; by default each view is of its own.
            category: (N,) the category of each, -1 where it is unknown; views of one product should not contradict.

        Raises:
            ValueError: there is no vector, one is not finite (its row is named), the shapes do not fit, or learning
                diverged.
        """
        centre = Centre.of(x)
        views = Views(x, centre, product, category)
        width = min(self.projection, x.shape[1])
        with one_thread_and_seed(self.seed):
            projection, codebooks = learn_shared_prefixes(
                views,
                self.level_sizes[: self._levels],
                self.shallow,
                width,
                self.steps,
                self.batch,
                self.learning_rate,
                self.seed,
            )
        self._centre, self._encoder = centre, [(projection, np.zeros(width, np.float32))]
        items = self._items(x, views.index, len(views))
        self._fit_deep(codebooks, items)
        self._fit_decoder(x, views.index, items)
        return self

    def encode(self, x: NDArray[np.floating]) -> NDArray[np.int32]:
        """(N, D) single views to (N, L + T) codes, level by level the nearest.

        Raises:
            ValueError: not fitted, a vector of another width, or one that is not finite (its row is named).
        """

        def code(block: NDArray[np.float32]) -> NDArray[np.int32]:
            return self._codes(self._project(block).astype(np.float32))

        return codes_of(x, self._width(), len(self.level_sizes), code)

    def encode_products(self, x: NDArray[np.floating], product: NDArray[np.integer]) -> NDArray[np.int32]:
        """(N, D) views, (N,) which product each shows -> (P, L + T) codes of the P products, by ascending number.

        A product's codes are those of the mean over its views, brought back to length 1.

        Raises:
            ValueError: as `encode`, or there is not one product for each view.
        """
        check_shape(x, self._width())
        if product.shape != (len(x),):
            raise ValueError(f"product has the shape {product.shape}, expected {(len(x),)}: one for each vector")
        ids, index = np.unique(product, return_inverse=True)
        return self._codes(self._items(x, index, len(ids)))

    def decode(self, codes: NDArray[np.integer]) -> NDArray[np.float32]:
        """(N, l) codes of the first l <= L + T levels to (N, D) vectors of products; fewer levels say less.

        Raises:
            ValueError: not fitted, too many levels, or a code that its level does not have.
        """
        self._width()
        return self._centre.restore(apply_layers(self._decoder, sum_codes(codes, self.codebooks)))

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
        tensors |= {f"prices_{part}": prices for part, prices in enumerate(self._prices)}
        tensors |= name_layers("projection", self._encoder) | name_layers("decoder", self._decoder)
        write_folder(Path(folder), config, tensors)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: a file is missing. ValueError: the files are damaged or do not fit each other.
        """
        config, tensors = read_config(Path(folder)), read_tensors(Path(folder))
        try:
            width = int(config["width"])
            quantizer = cls(config["level_sizes"], **{name: config[name] for name in _SETTINGS})
            narrow = min(quantizer.projection, width)
            quantizer._encoder = find_layers("projection", tensors, (width, narrow))
            quantizer._decoder = find_layers("decoder", tensors, (narrow, width))
            quantizer._centre = Centre.find(tensors, width)
            used = find_used_sizes(config, quantizer.level_sizes)
            quantizer._prices = [tensors[f"prices_{part}"] for part in range(len(quantizer.tail))]
            if [len(prices) for prices in quantizer._prices] != used[quantizer._levels :]:
                raise ValueError("prices and codebooks differ in size")
            quantizer.codebooks = find_codebooks(tensors, used, narrow)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: not a saved VRQ: {error}") from error
        return quantizer

    @property
    def _levels(self) -> int:
        """L, the levels before the tail."""
        return len(self.level_sizes) - len(self.tail)

    def _width(self) -> int:
        if not self.codebooks:
            raise ValueError("this quantizer has no codebooks yet: call fit first")
        return len(self._centre.mean)

    def _project(self, block: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, D) -> (N, d) unit vectors, or zeros."""
        z = apply_layers(self._encoder, self._centre.remove(block)).astype(np.float64)
        return _unit(z)

    def _items(self, x: NDArray[np.floating], index: NDArray[np.int64], products: int) -> NDArray[np.float32]:
        """(N, D) views, (N,) their products in 0..P-1 -> (P, d) the products."""
        total = np.zeros((products, len(self._encoder[0][1])))
        for start, block in finite_blocks(x):
            part = index[start : start + len(block)]
            order = np.argsort(part, kind="stable")
            first = np.flatnonzero(np.diff(part[order], prepend=-1))
            total[part[order[first]]] += np.add.reduceat(self._project(block)[order], first, axis=0)
        return _unit(total).astype(np.float32)

    def _codes(self, z: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N, d) unit vectors -> (N, L + T); all parts of the tail code what the last level leaves."""
        books = self.codebooks[: self._levels]
        codes = encode_residuals(z, books)
        if self.tail:
            z = z - sum_codes(codes, books)
            parts = zip(self.codebooks[self._levels :], self._prices, strict=True)
            codes = np.column_stack([codes, *(nearest(z, book, prices) for book, prices in parts)])
        return codes

    def _fit_deep(self, shallow: list[NDArray[np.float32]], z: NDArray[np.float32]) -> None:
        """Fit the deep codebooks and the tail to (P, d) products."""
        most = _POINTS_PER_CODE * max(self.level_sizes)
        residual = z[next(random_rows(len(z), most, 1, self.seed))]
        books = list(shallow)
        for level in range(self._levels):
            if level >= len(books):
                books.append(kmeans(residual, self.level_sizes[level], _ITERATIONS, self.seed + level))
            residual = residual - books[level][nearest(residual, books[level])]
        self._prices = []
        if self.tail:
            for book, prices in fit_parts(
                residual, len(self.tail), self.tail[0], _ITERATIONS, self.seed + self._levels
            ):
                books.append(book)
                self._prices.append(prices)
        self.codebooks = books

    def _fit_decoder(self, x: NDArray[np.floating], index: NDArray[np.int64], z: NDArray[np.float32]) -> None:
        """The least squares from what the codes of a product stand for to its views."""
        said = sum_codes(self._codes(z), self.codebooks)
        width = said.shape[1] + 1
        square, across = np.zeros((width, width)), np.zeros((width, x.shape[1]))
        for start, block in finite_blocks(x):
            given = np.ones((len(block), width))
            given[:, :-1] = said[index[start : start + len(block)]]
            square += given.T @ given
            across += given.T @ self._centre.remove(block)
        square += np.eye(width) * (_RIDGE * np.trace(square) / width)
        weights = np.linalg.solve(square, across).astype(np.float32)
        self._decoder = [(np.ascontiguousarray(weights[:-1].T), weights[-1])]


def _unit(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, d) rows at length 1; a zero row stays zero. Float64 hides in which order squares were added."""
    length = np.sqrt(np.square(z).sum(axis=1, keepdims=True))
    return np.divide(z, length, out=np.zeros_like(z), where=length > 0)
