"""The spread of the pre-activations, against networks whose pre-activations are their images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api.records import Sites
from harness.curvature.steering import coverage_of

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SPREAD = float(X.double().std(correction=0))


class Wide(nn.Module):
    """An activation of the images, each multiplied by one of these factors, one after the other."""

    def __init__(self, *factors: float, activation: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.factors, self.activation, self.module = factors, activation, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([self.activation(factor * x - 0.3) for factor in self.factors]).sum(0)
        return torch.flatten(self.module(9 * x) + outputs, 1)


def spread(network: nn.Module, x: Tensor = X, sites: Sites = "all") -> float | None:
    return coverage_of(network.eval(), sites, x, "relu").spread


@pytest.mark.parametrize(
    "activation", [F.relu, nn.LeakyReLU(0.2), nn.PReLU(), nn.ReLU6(), nn.Hardtanh(), nn.ReLU(inplace=True)]
)
def test_it_is_the_median_over_the_activations_whatever_their_kind(activation: Callable[[Tensor], Tensor]) -> None:
    assert spread(Wide(1, 2, 3, 4, activation=activation)) == pytest.approx(3 * SPREAD)


def test_registered_modules_alone_are_measured_where_they_alone_are_steered() -> None:
    assert spread(Wide(1, 2), sites="modules") == pytest.approx(9 * SPREAD)


def test_all_images_count_though_the_proof_is_made_on_one() -> None:
    one = nn.Sequential(nn.ReLU(), nn.Flatten())
    assert spread(one) == pytest.approx(SPREAD)
    assert spread(one, X[:2]) == pytest.approx(float(X[:2].double().std(correction=0)))
    assert spread(one, X[:2]) != pytest.approx(SPREAD, rel=1e-3)


def test_activations_that_never_vary_do_not_count() -> None:
    assert spread(Wide(0, 0, 0)) == pytest.approx(9 * SPREAD)
    assert spread(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.zeros(2, 1, 4, 4)) is None


def test_silu_and_gelu_are_measured_too() -> None:
    network = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(16, 3))
    assert coverage_of(network.eval(), "all", X, "smooth").spread == pytest.approx(SPREAD)


def test_measuring_leaves_no_trace() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.ReLU(), nn.Dropout(), nn.Flatten()).train()
    state, before = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    coverage_of(network, "all", X, "relu")
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)
