"""ResNet-4B of Wang et al. 2021 (β-CROWN, arXiv 2103.06624) and VNN-COMP 2021: residual, without batch normalisation.

The keys of the state dict are those of the authors' file. Every ReLU is a function call.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet4B(nn.Module):
    """A network from normalised images [n, 3, 32, 32] to logits [n, 10]: a stem, four blocks, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(16, 32, stride=2), Block(32, 32))
        self.layer2 = nn.Sequential(Block(32, 32, stride=2), Block(32, 32))
        self.linear1 = nn.Linear(32 * 4 * 4, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``."""
        features = self.layer2(self.layer1(F.relu(self.conv1(x))))
        logits: Tensor = self.linear2(F.relu(self.linear1(features.flatten(1))))
        return logits


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the block has a stride.

    Args:
        channels: number of input channels.
        out: number of output channels.
        stride: stride of the block.
    """

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Sequential(*([] if stride == 1 else [nn.Conv2d(channels, out, 1, stride)]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the block."""
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))
