"""Policy losses against numbers worked out by hand, and against TRL on one batch: values and gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from training.rl.advantages import group
from training.rl.losses import divergence, importance_ratio, policy_loss

EPSILON = 0.2


def batch(seed: int = 0, shape: tuple[int, int, int] = (3, 4, 5)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log pi, log pi_old, rewards, and which codes count: samples of unlike length."""
    random = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(shape, generator=random)
    new = (old + 0.4 * torch.randn(shape, generator=random)).clamp(max=-1e-3)
    rewards = torch.randn(shape[:2], generator=random)
    length = torch.randint(1, shape[2] + 1, shape[:2], generator=random)
    return new, old, rewards, torch.arange(shape[2]) < length.unsqueeze(-1)


def of_trl(new: Tensor, old: Tensor, advantages: Tensor, used: Tensor, reference: Tensor | None, **more: Any) -> Tensor:
    """What `GRPOTrainer._compute_loss` makes of log-probabilities that are given instead of computed."""
    config: dict[str, Any] = {"epsilon": EPSILON, "epsilon_high": EPSILON, "beta": 0.0, "loss_type": "grpo", **more}
    rows, length = new.shape[0] * new.shape[1], new.shape[2]
    flat = {name: one.reshape(rows, -1) for name, one in {"new": new, "old": old, "used": used.float()}.items()}
    trainer = SimpleNamespace(
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=length,
        epsilon_low=config["epsilon"],
        epsilon_high=config["epsilon_high"],
        importance_sampling_level=config.get("importance_sampling_level", "token"),
        beta=config["beta"],
        loss_type=config["loss_type"],
        args=SimpleNamespace(
            delta=config.get("delta"), use_bias_correction_kl=GRPOConfig.use_bias_correction_kl, steps_per_generation=1
        ),
        accelerator=SimpleNamespace(
            num_processes=1, reduce=lambda values, reduction: values, gather=lambda values: values
        ),
        _metrics={"train": {}},
        _get_per_token_logps_and_entropies=lambda *_, **__: (flat["new"], torch.zeros_like(flat["new"]), None),
    )
    trainer._metrics["train"] = _Lists()
    none = torch.zeros(rows, 0, dtype=torch.long)
    inputs = {
        "prompt_ids": none,
        "prompt_mask": none,
        "completion_ids": torch.zeros(rows, length, dtype=torch.long),
        "completion_mask": flat["used"],
        "advantages": advantages.reshape(rows),
        "old_per_token_logps": flat["old"],
        "num_items_in_batch": flat["used"].sum(),
        "ref_per_token_logps": None if reference is None else reference.reshape(rows, length),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, inputs)
    return loss


class _Lists(dict[str, list[float]]):
    def __missing__(self, key: str) -> list[float]:
        self[key] = []
        return self[key]


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "grpo"},
        {"loss_type": "dr_grpo"},
        {"loss_type": "dapo", "epsilon_high": 0.28},
        {"loss_type": "bnpo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        {"loss_type": "grpo", "delta": 1.25},
    ],
    ids=["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "delta"],
)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_loss_and_gradient_are_those_of_trl(options: dict[str, Any], beta: float) -> None:
    new, old, rewards, used = batch()
    scale: Any = "none" if options["loss_type"] == "dr_grpo" else "group"
    advantages = group(rewards, scale=scale)
    reference = old - 0.1 if beta else None
    ours, theirs = (new.clone().requires_grad_() for _ in range(2))
    expected = of_trl(theirs, old, advantages, used, reference, beta=beta, **options)
    level = options.get("importance_sampling_level", "token")
    extra = None
    if reference is not None:
        extra = beta * divergence(ours, reference, importance_ratio(ours, old, used, level))
    found = policy_loss(ours, old, advantages, used, epsilon=EPSILON, extra=extra, **options)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert float(ours.grad.abs().sum()) > 0


def one(log_prob: float, old: float, advantage: float, **options: Any) -> tuple[float, float]:
    """Loss of a single code, and its derivative by the log-probability."""
    value = torch.tensor([[[log_prob]]], requires_grad=True)
    loss = policy_loss(
        value, torch.tensor([[[old]]]), torch.tensor([[advantage]]), torch.ones(1, 1, 1, dtype=torch.bool), **options
    )
    loss.backward()
    return float(loss.detach()), float(value.grad)


def test_ecpo_caps_the_ratio_of_a_bad_sample_and_keeps_its_gradient() -> None:
    """pi = .4, pi_old = .1: the ratio 4 of a bad sample becomes 1 + .2 + .1, and pushes by that."""
    loss, slope = one(math.log(0.4), math.log(0.1), -1.0, loss_type="ecpo", epsilon=0.2, early=0.1)
    assert loss == pytest.approx(1.3, rel=1e-5) and slope == pytest.approx(1.3, rel=1e-5)
    assert one(math.log(0.4), math.log(0.1), -1.0, loss_type="grpo")[0] == pytest.approx(4.0, rel=1e-5)
    clamped = one(math.log(0.4), math.log(0.1), -1.0, loss_type="grpo", delta=1.3)
    assert clamped[0] == pytest.approx(1.3, rel=1e-5) and clamped[1] == 0, "TRL's delta has no gradient left"
    good = {name: one(math.log(0.4), math.log(0.1), 1.0, loss_type=name) for name in ("ecpo", "grpo")}
    assert good["ecpo"] == good["grpo"], "good samples are as in GRPO"


def test_gbpo_bounds_the_ratio_by_the_policy_itself() -> None:
    """A good sample's denominator is max(pi_old, pi), a bad one's max(pi_old, 1 - pi)."""
    good, slope = one(math.log(0.4), math.log(0.1), 1.0, loss_type="gbpo")
    assert good == pytest.approx(-1.0, rel=1e-5) and slope == pytest.approx(-1.0, rel=1e-5)
    bad, slope = one(math.log(0.4), math.log(0.1), -1.0, loss_type="gbpo")
    assert bad == pytest.approx(0.4 / 0.6, rel=1e-5) and slope == pytest.approx(0.4 / 0.6, rel=1e-5)
    assert one(math.log(0.1), math.log(0.4), 1.0, loss_type="gbpo")[0] == pytest.approx(-0.25, rel=1e-5)


def test_tpma_is_not_clipped_and_is_gated() -> None:
    log_prob = torch.tensor([[[math.log(0.4), math.log(0.5)]]])
    loss = policy_loss(
        log_prob,
        torch.tensor([[[math.log(0.1), math.log(0.5)]]]),
        torch.tensor([[[2.0, 1.0]]]),
        torch.ones(1, 1, 2, dtype=torch.bool),
        loss_type="tpma",
        gates=torch.tensor([[[1.0, 0.5]]]),
    )
    assert float(loss) == pytest.approx(-(4 * 2 + 1 * 1 * 0.5) / 2)


def test_before_the_first_update_all_losses_move_alike() -> None:
    """Ratios are 1: the gradient is that of REINFORCE, whatever bounds them."""
    new, _, rewards, _ = batch(2)
    used, advantages = torch.ones_like(new, dtype=torch.bool), group(rewards)
    gradients = []
    for name in ("grpo", "dapo", "bnpo", "ecpo", "dr_grpo", "tpma"):
        value = new.clone().requires_grad_()
        policy_loss(value, new, advantages, used, loss_type=name).backward()
        gradients.append(value.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])
    torch.testing.assert_close(gradients[0], (-advantages.unsqueeze(-1) / new.numel()).expand_as(new))
