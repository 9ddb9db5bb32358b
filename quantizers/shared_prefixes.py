"""What VRQ learns: a projection and codebooks in which the views of a product begin with the same codes.

The losses are those listed in `quantizers/vrq.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from quantizers.kmeans import kmeans
from quantizers.learning import (
    MovingCodebooks,
    adam,
    descend,
    random_rows,
    squared_distances,
    straight_through,
)
from quantizers.metrics import prefix_ids
from quantizers.rows import Centre

COMMITMENT: Final = 0.25
TEMPERATURE: Final = 0.1
START_ITEMS: Final = 32_768  # that the codebooks start from, and among which neighbours are sought
_START_ITERATIONS: Final = 10
_SEARCHES: Final = 10  # for neighbours, while learning
_ROWS: Final = 4096
_FLOOR: Final = 0.01  # of the mean square of a number: what a direction is at least thought to vary within a product


class Views:
    """Views by product.

    Args:
        x: (N, D), which may be a memory map.
        centre: what is taken from them.
        product: (N,) which product each shows, any numbers.
        category: (N,) the category of each, -1 where it is unknown.

    Attributes:
        index: (N,) the products numbered 0..P-1, in ascending order of their numbers.
        category: (P,) that of each product: the highest one of its views.
    """

    def __init__(
        self,
        x: NDArray[np.floating],
        centre: Centre,
        product: NDArray[np.integer] | None,
        category: NDArray[np.integer] | None,
    ) -> None:
        for name, given in (("product", product), ("category", category)):
            if given is not None and given.shape != (len(x),):
                raise ValueError(f"{name} has the shape {given.shape}, expected {(len(x),)}: one for each vector")
        self._x, self._centre = x, centre
        self.index = np.arange(len(x)) if product is None else np.unique(product, return_inverse=True)[1]
        self._rows = np.argsort(self.index, kind="stable")
        self._count = np.bincount(self.index)
        self._first = np.cumsum(self._count) - self._count
        self.category = np.full(len(self._count), -1, np.int64)
        if category is not None:
            np.maximum.at(self.category, self.index, category)

    def __len__(self) -> int:
        return len(self._count)

    def two(self, items: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """(B,) products -> (2B, D) a view of each and then another of each, and (B,) whether there was another."""
        count = self._count[items]
        one = rng.integers(count)
        other = (one + 1 + rng.integers(np.maximum(count - 1, 1))) % count
        rows = self._rows[np.concatenate([self._first[items] + one, self._first[items] + other])]
        return torch.from_numpy(self._centre.remove(self._x[rows])), torch.from_numpy(count > 1)


def learn_shared_prefixes(
    views: Views,
    level_sizes: Sequence[int],
    shallow: int,
    width: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """(width, D) the projection, and the shallow codebooks (K_l, width).

    Call it with the seed and the one thread of `quantizers/learning.py`.
    """
    rng = np.random.default_rng(seed)
    drawn = next(random_rows(len(views), START_ITEMS, 1, seed))
    projection = _discriminant(*views.two(drawn, rng), width)
    decoder = nn.Linear(width, projection.in_features)
    says_category = nn.Linear(width, max(1, int(views.category.max()) + 1))
    parameters = [*projection.parameters(), *decoder.parameters(), *says_category.parameters()]
    optimizer, schedule = adam(parameters, learning_rate, steps)
    codebooks: MovingCodebooks | None = None
    neighbours = np.zeros((0, 2), np.int64)
    for step, items in enumerate(random_rows(len(views), batch, steps, seed)):
        if step == steps // 5:
            start = _residual_kmeans(_items(projection, views, drawn, rng).numpy(), level_sizes, seed)
            codebooks = MovingCodebooks(start, len(items), range(shallow), seed)
        if codebooks and (step - steps // 5) % max(1, steps // _SEARCHES) == 0:
            neighbours = _neighbours(_items(projection, views, drawn, rng), drawn, codebooks.codebooks[:shallow])
        seen, paired = views.two(items, rng)
        z = normalize(projection(seen))
        z_a, z_b = z.chunk(2)
        z_p = normalize(z_a + z_b)
        target = (seen[: len(items)] + seen[len(items) :]) / 2
        category = torch.from_numpy(views.category[items])
        if codebooks is None:
            loss = mse_loss(decoder(z_p), target) + info_nce(z_a, z_b, paired) + naming(says_category(z_p), category)
        else:
            before = codebooks.codebooks.copy()
            codes, sums = codebooks.learn(z_p.detach())
            loss = mse_loss(decoder(straight_through(z_p, sums[-1])), target)
            loss = loss + COMMITMENT * torch.stack([(z_p - q).square().sum(dim=1).mean() for q in sums]).sum()
            loss = loss + _sharing(before[:shallow], z, codes, paired)
            loss = loss + naming(says_category(straight_through(z_p, sums[0])), category)
            if len(neighbours):
                left = (z_p - sums[-1]).detach().square().sum(dim=1).mean()
                pair = neighbours[rng.integers(len(neighbours), size=max(1, batch // 4))]
                close, _ = views.two(pair.T.ravel(), rng)
                one, other = normalize(projection(close)).chunk(2)
                pair_one, pair_other = normalize(one + other).chunk(2)
                loss = loss + apart(pair_one, pair_other, 4 * left)
        descend(loss, optimizer, schedule)
    assert codebooks is not None
    return projection.weight.detach().numpy().copy(), codebooks.arrays()[:shallow]


def info_nce(a: Tensor, b: Tensor, paired: Tensor) -> Tensor:
    """(B, d) and (B, d) views of B items, (B,) whether these are two -> how hard it is to tell which belong together.

    Cross-entropy of cosines over `TEMPERATURE`, both ways; the other B - 1 items are the negatives.
    """
    if not paired.any():
        return torch.zeros(())
    similar = normalize(a) @ normalize(b).T / TEMPERATURE
    own = torch.arange(len(a))[paired]
    return (cross_entropy(similar[paired], own) + cross_entropy(similar.T[paired], own)) / 2


def agreement(residual: Tensor, codebook: Tensor, code: Tensor) -> Tensor:
    """(B, d) what views leave below the prefixes of their items, (K, d), (B,) codes of the items -> cross-entropy.

    A code's logit is the squared distance over `-TEMPERATURE` times the mean squared length of the residuals.
    """
    size = residual.detach().square().sum(dim=1).mean().clamp_min(1e-12)
    return cross_entropy(squared_distances(residual, codebook) / (-TEMPERATURE * size), code)


def naming(said: Tensor, category: Tensor) -> Tensor:
    """(B, C), (B,) categories, -1 where unknown -> cross-entropy of `said / TEMPERATURE`."""
    known = category >= 0
    return cross_entropy(said[known] / TEMPERATURE, category[known]) if known.any() else torch.zeros(())


def apart(one: Tensor, other: Tensor, margin: Tensor) -> Tensor:
    """(B, d), (B, d) items of one cell, squared margin -> mean of `[1 - distance^2 / margin]_+`."""
    return (1 - (one - other).square().sum(dim=1) / margin.clamp_min(1e-12)).clamp_min(0).mean()


def _sharing(codebooks: Sequence[Tensor], z: Tensor, codes: Tensor, paired: Tensor) -> Tensor:
    """(2B, d) views, (B, L) codes of their items -> both losses of the shallow levels.

    `info_nce` compares what a view would be coded as by itself; `agreement` says where it should go.
    """
    loss = torch.zeros(())
    of_items, of_views = torch.zeros(()), torch.zeros(())
    for level, codebook in enumerate(codebooks):
        code = codes[:, level].repeat(2)
        loss = loss + agreement(z - of_items, codebook, code)
        of_items = of_items + codebook[code]
        with torch.no_grad():
            of_views = of_views + codebook[squared_distances(z - of_views, codebook).argmin(dim=1)]
        a, b = straight_through(z, of_views).chunk(2)
        loss = loss + info_nce(a, b, paired)
    return loss / len(codebooks)


def _discriminant(seen: Tensor, paired: Tensor, width: int) -> nn.Linear:
    """(2B, D) two centred views of each item, (B,) whether they are two -> the projection to begin with.

    The principal axes of the views after their scatter within products was made equal in all directions: linear
    discriminant analysis, and plain principal axes where no product has two views. Its rows have length 1 on average.
    """
    x, (one, other) = seen.double(), seen.double().chunk(2)
    within = (one - other)[paired] / 2**0.5
    scatter = within.T @ within / max(1, len(within))
    floor = _FLOOR * x.square().mean().clamp_min(1e-12) * torch.eye(x.shape[1])
    whiten = torch.linalg.inv(torch.linalg.cholesky(scatter + floor))
    white = x @ whiten.T
    _, axes = torch.linalg.eigh(white.T @ white)
    rows = axes.T.flip(0)[:width] @ whiten
    projection = nn.Linear(x.shape[1], len(rows), bias=False)
    with torch.no_grad():
        projection.weight.copy_(rows / rows.norm(dim=1).mean())
    return projection


@torch.no_grad()
def _items(projection: nn.Linear, views: Views, items: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
    """(B, d) what the items are, of two views each."""
    result = torch.empty(len(items), projection.out_features)
    for start in range(0, len(items), _ROWS):
        seen, _ = views.two(items[start : start + _ROWS], rng)
        one, other = normalize(projection(seen)).chunk(2)
        result[start : start + _ROWS] = normalize(one + other)
    return result


def _residual_kmeans(z: NDArray[np.float32], level_sizes: Sequence[int], seed: int) -> list[NDArray[np.float32]]:
    """L codebooks (K_l, d), filled up with zeros where there are fewer distinct residuals."""
    codebooks = []
    for level, size in enumerate(level_sizes):
        centroids = kmeans(z, size, _START_ITERATIONS, seed + level)
        codebook = np.zeros((size, z.shape[1]), np.float32)
        codebook[: len(centroids)] = centroids
        z = z - centroids[squared_distances(torch.from_numpy(z), torch.from_numpy(centroids)).argmin(dim=1)]
        codebooks.append(codebook)
    return codebooks


def _neighbours(z: Tensor, items: NDArray[np.int64], codebooks: Sequence[Tensor]) -> NDArray[np.int64]:
    """(M, 2) pairs of items with equal shallow codes: each with the next of its cell."""
    codes = []
    for codebook in codebooks:
        codes.append(squared_distances(z, codebook).argmin(dim=1))
        z = z - codebook[codes[-1]]
    cell = prefix_ids(torch.stack(codes, dim=1).numpy())[:, -1]
    order = np.argsort(cell, kind="stable")
    follows = np.flatnonzero(np.diff(cell[order]) == 0)
    return items[np.column_stack([order[follows], order[follows + 1]])]
