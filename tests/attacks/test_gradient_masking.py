"""Inspection of gradients: on linear networks, which rise as the gradient says, and on wrong backward passes."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.defences import Backward
from torch import Tensor, nn

from harness.api.threat import Flag
from harness.attacks.gradient_masking import CROSS_ENTROPY, MARGIN, inspect
from harness.threats.lp import L1, L2, Linf, Lp


class Linear(nn.Module):
    """A linear network on images of d pixels, whose gradient is multiplied by a number."""

    def __init__(self, d: int, classes: int = 3, gradient: float = 1, scale: float = 1) -> None:
        super().__init__()
        self.gradient = gradient
        self.weight = scale * torch.randn(d, classes, generator=torch.Generator().manual_seed(d))

    def forward(self, x: Tensor) -> Tensor:
        if self.gradient != 1:
            x = Backward.apply(x, x, lambda g, _: self.gradient * g)
        logits: Tensor = (x - 0.5).flatten(1) @ self.weight
        return logits


def images(network: nn.Module, d: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(32, 1, 1, d, generator=torch.Generator().manual_seed(0))
    return x, network(x).argmax(1)


def flags_of(network: nn.Module, d: int, losses: tuple[str, ...] = (CROSS_ENTROPY, MARGIN)) -> set[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inspect(network, *images(network, d), losses)
    return {warning.message.name for warning in caught if isinstance(warning.message, Flag)}


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3, 1e6])
@pytest.mark.parametrize("d", [2, 3, 10])
def test_a_linear_network_has_no_flag_whatever_its_scale(d: int, scale: float) -> None:
    assert flags_of(Linear(d, scale=scale), d) == set()


@pytest.mark.parametrize("gradient", [-1, -0.05, 0.4, 2.1, 34, 2461, float("nan")])
def test_a_gradient_that_predicts_another_rise_is_flagged(gradient: float) -> None:
    assert "gradient_mismatch" in flags_of(Linear(10, gradient=gradient), 10)


@pytest.mark.parametrize("gradient", [0.7, 1.4])
def test_a_gradient_within_half_of_the_rise_is_not(gradient: float) -> None:
    assert flags_of(Linear(10, gradient=gradient), 10) == set()


def test_a_zero_gradient_counts_only_where_no_loss_of_the_attack_has_another() -> None:
    """Times a million, the cross-entropy saturates; a margin does not."""
    network = Linear(10, scale=1e6)
    assert flags_of(network, 10, (CROSS_ENTROPY,)) == {"zero_gradient"}
    assert flags_of(network, 10, (MARGIN,)) == set()
    assert {"zero_gradient", "large_eps"} <= flags_of(Linear(10, gradient=0), 10)


def test_nothing_is_said_of_gradients_that_no_attack_follows() -> None:
    assert flags_of(Linear(10, gradient=-1), 10, ()) == set()


@pytest.mark.parametrize("threat", [Linf, L2, L1])
def test_the_losses_are_those_of_the_attack_whatever_the_norm(threat: type[Lp]) -> None:
    from harness.attacks import autoattack

    for stages, losses in (
        (["apgd-ce"], {CROSS_ENTROPY}), (["apgd-t", "fab"], {MARGIN}), (["square"], set()),
        (["apgd-ce", "fab-t", "square"], {CROSS_ENTROPY, MARGIN}),
    ):  # fmt: skip
        found = threat.model_validate({"eps": 0.1, "attack": {"stages": stages}})
        assert autoattack.losses(found.attack) == losses
