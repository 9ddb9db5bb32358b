"""Dot products of some pairs of rows, without a copy of a row for every pair."""

from __future__ import annotations

import torch
from torch import Tensor


def dots_of_pairs(left: Tensor, right: Tensor, edges: Tensor, other: Tensor) -> Tensor:
    """(P,) of rows of `left` (Q, D) and `right` (N, D); row r of `left` has the pairs `edges[r]:edges[r + 1]`.

    Several times as fast on a CPU as gathering both rows of every pair. No gradients.

    Args:
        edges: (Q + 1,) int64, ascending from 0 to P. other: (P,) int64 rows of `right`, in any order.

    >>> right, edges = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0, 1, 3])
    >>> dots_of_pairs(torch.eye(2), right, edges, torch.tensor([1, 0, 1]))
    tensor([3., 2., 4.])
    """
    size = len(left), len(right)
    pairs = torch.sparse_csr_tensor(edges, other, left.new_zeros(len(other)), size=size, check_invariants=False)
    return torch.sparse.sampled_addmm(pairs, left, right.T, beta=0).values()
