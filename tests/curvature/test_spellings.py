"""Every spelling of ReLU is counted and named, though not steered; guards and honest layers are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api.records import Coverage
from harness.curvature.steering import coverage_of
from harness.leaderboard.flags import of_coverage
from harness.models.demo import Demo


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.activation = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), activation
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        answers: Tensor = self.last(self.activation(self.second(x)).mean((2, 3)))
        return answers


def assigned(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu as maximum": lambda x: torch.maximum(x, torch.zeros(())),
    "relu as mul": lambda x: x * (x > 0),
    "relu as clamp": lambda x: x.clamp(min=0),
    "relu as clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "relu as clamp_min ": lambda x: x.clone().clamp_min_(0),
    "relu as where": lambda x: torch.where(x > 0, x, 0.0),
    "relu as masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "relu as setitem": assigned,
    "leaky_relu as maximum": lambda x: torch.maximum(x, 0.1 * x),
    "leaky_relu as where": lambda x: torch.where(x > 0, x, 0.2 * x),
    "threshold": lambda x: F.threshold(x, 0.0, 0.0),
}


def coverage(network: nn.Module, size: int = 16, sites: str = "all") -> Coverage:
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return coverage_of(network.eval().requires_grad_(False), sites, image, "relu")  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_counted_and_named_and_the_row_is_partial(spelling: str) -> None:
    found = coverage(Net(SPELLINGS[spelling]))
    assert found.kinds == {"relu": 1, spelling.strip(): 1}
    assert found.steered == 1
    assert found.sites == (1 if spelling == "threshold" else 2)
    assert of_coverage(found, "relu") == {"partial"}


@pytest.mark.parametrize(
    "harmless",
    [
        lambda x: x,
        lambda x: 0.5 * x,
        lambda x: x * x.sigmoid().detach(),
        lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=0),
        lambda x: x / (x.var(1, keepdim=True).clamp(min=0) + 1e-5).sqrt(),
        lambda x: x.abs().clamp(min=0),
        lambda x: x.abs(),
        lambda x: x.clamp(-50, 50),
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: F.dropout(x, 0.5, training=False),
    ],
)
def test_guards_and_other_operations_are_no_activations(harmless: Callable[[Tensor], Tensor]) -> None:
    found = coverage(Net(harmless))
    assert {kind: number for kind, number in found.kinds.items() if " as " in kind} == {}
    assert (found.sites, found.steered) == (1, 1)


def test_a_clamped_image_is_no_activation() -> None:
    assert coverage(nn.Sequential(Clamping(), Net(F.relu))).kinds == {"relu": 2}


class Clamping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x.clamp(0, 1), torch.zeros(())).clamp_min(0)


def test_registered_modules_alone_count_it_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Net(SPELLINGS["relu as maximum"]).second, Maximum())
    found = coverage(network, sites="modules")
    assert (found.sites, found.steered, found.kinds) == (2, 1, {"relu": 1, "relu as maximum": 1})


class Maximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, torch.zeros(())).mean((2, 3))


@pytest.mark.parametrize(("name", "sites"), [("resnet18", 17), ("vgg11_bn", 10), ("densenet121", 121)])
def test_real_networks_raise_no_false_alarm(name: str, sites: int) -> None:
    found = coverage(torchvision.models.get_model(name, weights=None), size=64)
    assert found.kinds == {"relu": sites}


@pytest.mark.parametrize("name", [name for names in Demo.names().values() for name in names])
def test_the_demo_networks_raise_no_false_alarm(name: str) -> None:
    network = Demo(name=name).load().network
    channels = next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))
    image = torch.rand(1, channels, 8, 8) if channels == 1 else torch.rand(1, channels, 32, 32)
    found = coverage_of(network.requires_grad_(False), "all", image, "relu")
    assert found.sites == found.steered
    assert not any(" as " in kind for kind in found.kinds)
