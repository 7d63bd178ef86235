"""CIFAR-10 ResNets of He et al. 2016 (arXiv 1512.03385, section 4.2): 6n + 2 layers, shortcuts without parameters.

The keys of the state dict are those of the checkpoints of akamaster/pytorch_resnet_cifar10. Every ReLU is a function
call.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class ResNet(nn.Module):
    """A ResNet from normalised images [n, 3, 32, 32] to logits [n, 10].

    Args:
        blocks: number n of blocks in each of the three stages.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``."""
        stem = F.relu(self.bn1(self.conv1(x)))
        features = self.layer3(self.layer2(self.layer1(stem)))
        logits: Tensor = self.linear(features.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Two normalised 3×3 convolutions beside a shortcut; a block that widens also halves the resolution.

    The shortcut is option A of the paper: every other pixel, and channels of zeros, half of them before the others and
    half behind.

    Args:
        channels: number of input channels.
        out: number of output channels.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride = 1 if channels == out else 2
        self.zeros = (out - channels) // 2
        self.conv1 = nn.Conv2d(channels, out, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the block."""
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.zeros, self.zeros))
        return F.relu(branch + shortcut)


def _stage(channels: int, out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, out), *(Block(out, out) for _ in range(blocks - 1)))


resnet20 = partial(ResNet, 3)
resnet56 = partial(ResNet, 9)
