"""Networks with one fault each, on the images of `tiny_networks`."""

from __future__ import annotations

import torch
from tiny_networks import quadrants
from torch import Tensor, nn


class _Detached(nn.Module):
    """A gradient of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body = quadrants()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits.detach() + 0 * x.sum()


class _NaNGradient(nn.Module):
    """Finite logits with a gradient of NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = quadrants()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits + (0 * x.flatten(1)).sqrt().sum(1, keepdim=True)


class _Shuffled(nn.Module):
    """Every class is taken for its neighbour."""

    def __init__(self) -> None:
        super().__init__()
        self.body = quadrants()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return torch.relu(logits[:, [1, 2, 3, 0]])


def detached() -> nn.Module:
    return _Detached()


def nan_gradient() -> nn.Module:
    return _NaNGradient()


def shuffled() -> nn.Module:
    return _Shuffled()


def untrained() -> nn.Module:
    """Other weights at each call."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU())


class _TrainsToNothing(nn.Sequential):
    """``train`` forgets to return the network."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def trains_to_nothing() -> nn.Module:
    return _TrainsToNothing(quadrants())
