"""The look ahead against the same sums written plainly, with the gradients that autograd finds."""

import numpy as np
import pytest
import torch
from catalogues import CONTENT, PRIORS, SNAPSHOTS, TASTE, random_codes, random_generator

from onesearch.model import ahead
from onesearch.model.ahead import look_ahead, powers


@pytest.mark.parametrize("content", [True, False])
@pytest.mark.parametrize("spelling", [True, False])
@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("group", [1, 60, 2**18])
def test_sums_and_gradients(
    monkeypatch: pytest.MonkeyPatch, content: bool, spelling: bool, prior: bool, offers: bool, group: int
) -> None:
    """In groups of one request, of a few, and of all at once."""
    monkeypatch.setattr(ahead, "GROUP", group)
    codes = random_codes(np.random.default_rng(0), 40, (4, 5, 6), True)
    catalogue = random_generator(0, codes, (4, 5, 6)).bound
    nodes = len(catalogue.ahead_first)
    random = torch.Generator().manual_seed(1)
    covered = torch.rand(7, nodes, generator=random)
    snapshot = torch.randint(0, SNAPSHOTS, (7,), generator=random)
    gates = [
        torch.randn(7, width if used else 0, generator=random).requires_grad_()
        for width, used in ((CONTENT + TASTE, content), (3, spelling), (PRIORS, prior), (2, offers))
    ]
    offered = torch.rand(2 if offers else 0, 7, nodes, generator=random)
    score = gates[0] @ catalogue.content[catalogue.ahead][:, : gates[0].shape[1]].T
    for weight, power in zip(gates[1].unbind(1), powers(covered, 3), strict=False):
        score = score + weight[:, None] * power
    for weight, mass in zip(gates[2].unbind(1), catalogue.ahead_log_mass, strict=False):
        score = score + weight[:, None] * mass[snapshot]
    for weight, share in zip(gates[3].unbind(1), offered, strict=True):
        score = score + weight[:, None] * share
    first = torch.nn.functional.one_hot(catalogue.ahead_first).bool()
    spread = torch.where(first.T, score.unsqueeze(1), -torch.inf)
    expected = spread.logsumexp(-1)
    found = look_ahead(catalogue, covered, snapshot, offered, *gates)
    torch.testing.assert_close(found, expected)
    into = torch.randn(found.shape, generator=random)
    used = [gate for gate in gates if gate.shape[1]]
    if used:
        for one, other in zip(
            torch.autograd.grad(found, used, into), torch.autograd.grad(expected, used, into), strict=True
        ):
            torch.testing.assert_close(one, other)
