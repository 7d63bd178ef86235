"""Architecture of the demo networks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 12


class DigitsNet(nn.Module):
    """A residual network from digits [n, 1, 8, 8] in [0, 1] to logits [n, classes]; 4,666 parameters for ten classes.

    It has a stem that halves the resolution, one residual block, and a linear layer on the flattened features. Neither
    pixels nor features are normalised. It is as small as its accuracy allows, so that AutoAttack is quick. Of the three
    ReLUs of a forward pass, two are modules and one is not; see `Residual`.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.relu = nn.ReLU()
        self.block = Residual(WIDTH)
        self.classifier = nn.Linear(WIDTH * 4 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``."""
        features = self.block(self.relu(self.stem(x)))
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


class Residual(nn.Module):
    """A residual block of two convolutions.

    The ReLU after the sum is a function call, as in the CIFAR ResNets of the Curvature Tuning paper: replacing modules
    misses it, and only ``sites: all`` reaches every ReLU.

    Args:
        width: number of channels throughout.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the block, of the shape of ``x``."""
        return F.relu(x + self.second(self.relu(self.first(x))))
