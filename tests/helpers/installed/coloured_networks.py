"""Networks on coloured images, of random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Coloured(nn.Module):
    """On 32×32 pixels and four classes, with a registered ReLU and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(F.relu(self.relu(self.first(x)) - 0.1).flatten(1))
        return logits


def coloured() -> nn.Module:
    """On 32×32 pixels, four logits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Coloured().eval()


def pooled() -> nn.Module:
    """On images of any size, five numbers each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4, 5)).eval()
