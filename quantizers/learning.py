"""What the learned quantizers share while they learn: batches, balanced assignment, codebooks that follow vectors.

The codebooks are moving averages of the vectors assigned to each code (VQ-VAE, https://arxiv.org/abs/1711.00937,
appendix A.1). A code that has nearly stopped being used starts again at a vector of the batch (SoundStream,
https://arxiv.org/abs/2107.03312). Balanced assignment is Sinkhorn's, towards equal use of all codes within a batch
(https://arxiv.org/abs/1911.05371; for semantic IDs in LC-Rec, https://arxiv.org/abs/2311.09049).

Learning is held to one thread of torch: sums in another order would give other codebooks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

DECAY: Final = 0.99
_DEAD: Final = 0.05  # of the use that a code would have if all were used alike
_SOFTNESS: Final = 0.05  # of the mean distance; softer evens out more, and tells near codes apart less
_ROUNDS: Final = 20


@contextmanager
def one_thread_and_seed(seed: int) -> Iterator[None]:
    """Torch with this seed and one thread; afterwards as it was."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def random_rows(n: int, batch: int, steps: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """`steps` times the (b,) rows of a batch, b <= batch, ascending; in each pass over the n rows each comes once."""
    rng, size = np.random.default_rng(seed), min(batch, n)
    order, start = rng.permutation(n), 0
    for _ in range(steps):
        if start + size > n:
            order, start = rng.permutation(n), 0
        yield np.sort(order[start : start + size])
        start += size


def squared_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """(B, D), (K, D) -> (B, K)."""
    return (x.square().sum(1, keepdim=True) - 2 * x @ codebook.T + codebook.square().sum(1)).clamp_min(0)


def sinkhorn(distance: Tensor) -> Tensor:
    """(B, K) squared distances -> (B, K) shares: each row sums to 1, and each column to about B / K.

    >>> alike = torch.tensor([[0.0, 2.0], [0.5, 2.0], [1.0, 2.0], [1.4, 2.0]])  # code 0 is nearest to all
    >>> sinkhorn(alike).argmax(dim=1).tolist()
    [0, 0, 1, 1]
    """
    rest = distance - distance.min(dim=1, keepdim=True).values
    kernel = torch.exp(-(rest / (_SOFTNESS * rest.mean()).clamp_min(1e-12)).clamp_max(80))
    rows = torch.ones(len(distance))
    for _ in range(_ROUNDS):
        columns = len(distance) / distance.shape[1] / (rows @ kernel).clamp_min(1e-35)
        rows = 1 / (kernel @ columns).clamp_min(1e-35)
    return rows[:, None] * kernel * columns


class MovingCodebooks:
    """L codebooks that follow the vectors assigned to their codes.

    Args:
        codebooks: where they start, L arrays (K_l, D).
        batch: how many vectors a step brings, of which each code is first thought to have an equal share.
        balanced: the levels at which learning assigns by Sinkhorn's balance and not to the nearest code.
        seed: of the vectors at which dead codes start again.

    Attributes:
        codebooks: L tensors (K_l, D).
    """

    def __init__(
        self, codebooks: Sequence[NDArray[np.float32]], batch: int, balanced: Collection[int], seed: int
    ) -> None:
        self.codebooks = [torch.tensor(codebook) for codebook in codebooks]
        self._equal_use = [batch / len(codebook) for codebook in codebooks]
        self._uses = [
            torch.full((len(book),), float(use)) for book, use in zip(codebooks, self._equal_use, strict=True)
        ]
        self._sums = [book * use for book, use in zip(self.codebooks, self._equal_use, strict=True)]
        self._balanced = frozenset(balanced)
        self._random = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def learn(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, D) vectors -> (B, L) codes, and L tensors (B, D): the sum of what the first 1, 2, ... L codes stand for.

        Both are as of before the codebooks move, which they have done when this returns.
        """
        partial, codes, sums = torch.zeros_like(x), [], []
        for level, codebook in enumerate(self.codebooks):
            distance = squared_distances(x - partial, codebook)
            code = sinkhorn(distance).argmax(dim=1) if level in self._balanced else distance.argmin(dim=1)
            self._move(level, x - partial, code)
            partial = partial + codebook[code]
            codes.append(code)
            sums.append(partial)
        return torch.stack(codes, dim=1), sums

    def arrays(self) -> list[NDArray[np.float32]]:
        """The codebooks as they are now."""
        return [codebook.numpy().copy() for codebook in self.codebooks]

    def _move(self, level: int, given: Tensor, code: Tensor) -> None:
        uses, sums = self._uses[level], self._sums[level]
        uses.mul_(DECAY).add_(torch.bincount(code, minlength=len(uses)), alpha=1 - DECAY)
        sums.mul_(DECAY).add_(torch.zeros_like(sums).index_add_(0, code, given), alpha=1 - DECAY)
        dead = torch.nonzero(uses < _DEAD * self._equal_use[level])[:, 0]
        if len(dead):
            row = torch.randint(len(given), (len(dead),), generator=self._random)
            uses[dead] = self._equal_use[level]
            sums[dead] = given[row] * self._equal_use[level]
        self.codebooks[level] = sums / uses[:, None]  # a new tensor: who has the old one keeps it


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized`, whose gradient is that of `z`."""
    return z + (quantized - z).detach()


def adam(parameters: Iterable[nn.Parameter], learning_rate: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Adam whose learning rate falls along a cosine to nothing within `steps`."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)


def descend(loss: Tensor, optimizer: Optimizer, schedule: LRScheduler) -> None:
    """One step.

    Raises:
        ValueError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise ValueError(f"learning diverged at step {schedule.last_epoch}: use a lower learning_rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def check_settings(learning_rate: float, **counts: int | Sequence[int]) -> None:
    """Raises a ValueError for a learning rate outside (0, 1), or a count that is not positive."""
    if not 0 < learning_rate < 1:
        raise ValueError(f"learning_rate must be between 0 and 1, not {learning_rate!r}")
    for name, value in counts.items():
        each = list(value) if isinstance(value, Sequence) else [value]
        if not each or min(each) < 1:
            raise ValueError(f"{name} must be positive, not {value!r}")
