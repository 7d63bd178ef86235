"""Networks on 8×8 images of four classes: class k has the brightest quadrant k."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _quadrants(extra: int = 0, classes: int = 4) -> nn.Sequential:
    drawn = torch.Generator().manual_seed(7)
    first, last = nn.Linear(64, 4 + extra), nn.Linear(4 + extra, classes)
    with torch.no_grad():
        mean = torch.zeros(4, 8, 8)
        for k in range(4):
            mean[k, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] = 1 / 16
        noise = torch.randn(extra, 64, generator=drawn) / 8
        first.weight.copy_(torch.cat([mean.flatten(1), noise]))
        first.bias.zero_()
        last.weight.copy_(torch.cat([10 * torch.eye(4), torch.randn(4, extra, generator=drawn)], 1)[:classes])
        last.bias.zero_()
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)


def quadrants() -> nn.Sequential:
    """Linear on images in [0, 1], so its robust accuracy has a closed form."""
    return _quadrants()


def mixed() -> nn.Sequential:
    """With random units among them, so that every steering scores differently."""
    return _quadrants(extra=24)


def narrow() -> nn.Sequential:
    """Two logits for four classes."""
    return _quadrants(classes=2)


def probabilities() -> nn.Module:
    return nn.Sequential(_quadrants(), nn.Softmax(1))


def smooth() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.GELU())


class _NaN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = _quadrants()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x)
        return logits * float("nan")


def nan() -> nn.Module:
    return _NaN()


class _Lapses(nn.Module):
    """Fails in the dark, long after it was admitted."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _quadrants()

    def forward(self, x: Tensor) -> Tensor:
        if x.min() < 0.1:
            raise RuntimeError("a lapse")
        logits: Tensor = self.body(x)
        return logits


def lapses() -> nn.Module:
    return _Lapses()
