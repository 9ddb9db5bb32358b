"""Quantizers compared on views of products: does a picture from another side get the codes of its product?

One semantic ID a product, the codes of the mean of its views; a query picture is one view, encoded alone. Fitted on the
views of most products; the others were never seen, neither they nor their category. `agreement@l` counts pairs of views
of one product that share their first l codes, `lands@l` views that share them with their product's ID, and `others@l`
pairs of views of different products: a quantizer that puts everything into a few cells agrees about everything. So does
one of low entropy: `bits@l` is that of the products' first l codes.

Settings are chosen with `VARIANTS` on the products of `never_held_out`, which are split anew: what a seed holds out has
been seen by no choice.

All quantizers read the same `WIDTH` principal directions of the views they are fitted on: the rotation that belongs to
an optimized product quantizer costs the cube of the width.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onesearch.embed.text import unit_rows
from quantizers import Quantizer, ResidualKMeans, independent_coding_rate
from quantizers.metrics import level_entropy, prefix_ids
from quantizers.rq_vae import RQVAE
from quantizers.views import category_purity, prefix_agreement, prefix_landing
from quantizers.vrq import VRQ

HELD_OUT: Final = 0.2
SEEDS: Final = (0, 1, 2)
LEVELS: Final = (64, 64, 64)
TAIL: Final = (64, 64)
WIDTH: Final = 256
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """V views of P products.

    Attributes:
        vectors: (V, D) unit vectors.
        product: (V,) numbers of the products, 0 to P - 1.
        category: (V,) numbers of the categories, -1 where they are unknown.
    """

    vectors: NDArray[np.float32]
    product: NDArray[np.int64]
    category: NDArray[np.int64]

    def of(self, products: NDArray[np.int64]) -> Pictures:
        """Only the views of these products, which are numbered anew in their order."""
        rows = np.flatnonzero(np.isin(self.product, products))
        number = np.unique(self.product[rows], return_inverse=True)[1]
        return Pictures(self.vectors[rows], number, self.category[rows])

    def along(self, directions: NDArray[np.float32]) -> Pictures:
        """What (D, d) directions see of the vectors, at unit length."""
        return Pictures(unit_rows(self.vectors @ directions), self.product, self.category)

    def means(self) -> NDArray[np.float32]:
        """(P, D) unit vectors, the mean of each product's views."""
        sums = np.zeros((int(self.product.max()) + 1, self.vectors.shape[1]))
        np.add.at(sums, self.product, self.vectors)
        return unit_rows(sums.astype(np.float32))


Codes = tuple[NDArray[np.int32], NDArray[np.int32]]
"""(V, L) of single views and (P, L) of products."""
Coded = Callable[[Pictures], Codes]
Fit = Callable[[Pictures, int], Coded]
"""Learns from views, with a seed; gives what codes other ones."""


def compare(
    pictures: Pictures,
    seeds: Sequence[int] = SEEDS,
    others: Mapping[str, Pictures] | None = None,
    quantizers: Mapping[str, Fit] | None = None,
) -> list[dict[str, Any]]:
    """One row a quantizer and part ("all", "fitted", "held out", and those of `others`): means over the seeds.

    A seed decides both the split of the products and the start of the quantizers, by default all of `QUANTIZERS`.
    """
    rows = []
    for name, fit in (quantizers or QUANTIZERS).items():
        found: dict[str, list[dict[str, float]]] = {}
        started = time.process_time()
        for seed in seeds:
            known, unseen = (pictures.of(products) for products in split(int(pictures.product.max()) + 1, seed))
            directions = principal(known.vectors)
            coded = fit(known.along(directions), seed)
            for part, these in {"all": pictures, "fitted": known, "held out": unseen, **(others or {})}.items():
                found.setdefault(part, []).append(measures(these, *coded(these.along(directions))))
        log.info("%s: %.0f s of one core a seed", name, (time.process_time() - started) / len(seeds))
        rows += [
            {"quantizer": name, "products": part, **{key: _mean(one[key] for one in each) for key in each[0]}}
            for part, each in found.items()
        ]
    return rows


def split(products: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The products to fit on and the held-out ones, ascending."""
    order = np.random.default_rng(seed).permutation(products)
    held = round(HELD_OUT * products)
    return np.sort(order[held:]), np.sort(order[:held])


def never_held_out(products: int) -> NDArray[np.int64]:
    """Those that every one of the `SEEDS` fits on, ascending."""
    known = [split(products, seed)[0] for seed in SEEDS]
    return np.flatnonzero(np.bincount(np.concatenate(known), minlength=products) == len(SEEDS))


def principal(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(D, d) the orthonormal directions that keep most of the (V, D) vectors' length; not centred, angles stay."""
    _, directions = np.linalg.eigh(vectors.T @ vectors)  # the largest last
    return np.ascontiguousarray(directions[:, -WIDTH:])


def measures(pictures: Pictures, views: NDArray[np.int32], items: NDArray[np.int32]) -> dict[str, float]:
    """What (V, L) codes of views and (P, L) codes of products are worth, by the name of the measure."""
    agreement, others = prefix_agreement(views, pictures.product), _agreement_of_others(views, pictures.product)
    lands = prefix_landing(views, pictures.product, items)
    found: dict[str, float] = {}
    for level in range(len(LEVELS)):
        found |= {f"agreement@{level + 1}": float(agreement[level]), f"lands@{level + 1}": float(lands[level])}
        found[f"others@{level + 1}"] = float(others[level])
    entropy = level_entropy(prefix_ids(items), [len(items)] * items.shape[1])
    found |= {f"bits@{level}": float(entropy[level - 1]) for level in (1, 2)}
    first = np.unique(pictures.product, return_index=True)[1]
    if (pictures.category >= 0).any():
        found["purity@1"] = category_purity(items[:, 0], pictures.category[first])
    found[f"ICR@{len(LEVELS)}"] = independent_coding_rate(items[:, : len(LEVELS)])
    found["ICR"] = independent_coding_rate(items)
    return found


def _agreement_of_others(codes: NDArray[np.int32], product: NDArray[np.int64]) -> NDArray[np.float64]:
    """(L,) the share of the pairs of views of different products that have the same first 1, 2, ... L codes."""
    pairs = _pairs(np.zeros(len(codes), np.int64)) - _pairs(product)
    prefixes = prefix_ids(codes)
    products = int(product.max()) + 1
    same = [_pairs(prefix) - _pairs(prefix * products + product) for prefix in prefixes.T]
    return np.array(same) / max(pairs, 1)


def _pairs(group: NDArray[np.int64]) -> int:
    """How many pairs of rows are of the same group."""
    sizes = np.unique(group, return_counts=True)[1].astype(np.int64)
    return int((sizes * (sizes - 1) // 2).sum())


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _plain(make: Callable[[int], Quantizer], of_means: bool = False) -> Fit:
    """A quantizer that is fitted on the views, whichever product they are of, or on the means of the products."""

    def fit(pictures: Pictures, seed: int) -> Coded:
        quantizer = make(seed).fit(pictures.means() if of_means else pictures.vectors)
        return lambda those: (quantizer.encode(those.vectors), quantizer.encode(those.means()))

    return fit


def _vrq(tail: Sequence[int] = (), category_weight: float = 0.5) -> Fit:
    """The one that is told which views are of one product, and the products' categories."""

    def fit(pictures: Pictures, seed: int) -> Coded:
        quantizer = VRQ(LEVELS, tail=tail, category_weight=category_weight, seed=seed)
        quantizer.fit(pictures.vectors, product=pictures.product, category=pictures.category)
        return lambda those: (quantizer.encode(those.vectors), quantizer.encode_products(those.vectors, those.product))

    return fit


QUANTIZERS: Final[Mapping[str, Fit]] = {
    "ResidualKMeans": _plain(lambda seed: ResidualKMeans(LEVELS, seed=seed)),
    "ResidualKMeans of means": _plain(lambda seed: ResidualKMeans(LEVELS, seed=seed), of_means=True),
    "RQVAE": _plain(lambda seed: RQVAE(LEVELS, batch=256, seed=seed)),  # 80 passes over the views
    "KHQE": _plain(lambda seed: ResidualKMeans(LEVELS, tail=TAIL, balance="last", seed=seed)),
    "VRQ": _vrq(),
    "VRQ with tail": _vrq(TAIL),
}
VARIANTS: Final[Mapping[str, Fit]] = QUANTIZERS | {
    f"VRQ, category {weight}": _vrq(category_weight=weight) for weight in (0.0, 0.25, 1.0)
}
