"""Networks on 8x8 images of four classes: class k has the brightest quadrant k."""

import os
import signal
from multiprocessing import current_process
from pathlib import Path

import torch
from torch import nn


def _quadrants(extra=0, classes=4):
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


def quadrants():
    """Linear on images in [0, 1], so its robust accuracy has a closed form."""
    return _quadrants()


def mixed():
    """With random units among them, so that every steering scores differently."""
    return _quadrants(extra=24)


def narrow():
    return _quadrants(classes=2)


def probabilities():
    return nn.Sequential(_quadrants(), nn.Softmax(1))


def smooth():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.GELU())


class _NaN(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = _quadrants()

    def forward(self, x):
        return self.body(x) * float("nan")


def nan():
    return _NaN()


class _Lapses(nn.Module):
    """Fails in the dark, long after it was admitted."""

    def __init__(self):
        super().__init__()
        self.body = _quadrants()

    def forward(self, x):
        if x.min() < 0.1:
            raise RuntimeError("a lapse")
        return self.body(x)


def lapses():
    return _Lapses()


def _die():
    os.kill(os.getpid(), signal.SIGKILL)


def dies_once():
    marker = Path("died.once")
    if current_process().name != "MainProcess" and not marker.exists():
        marker.touch()
        _die()
    return mixed()


def dies_always():
    if current_process().name != "MainProcess":
        with Path("died.always").open("a") as log:
            log.write("x")
        _die()
    return mixed()
