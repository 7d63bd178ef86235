"""CIFAR ResNets of the Curvature Tuning paper: builders for ``kind: checkpoint`` that load its checkpoints.

He et al. 2016 (arXiv 1512.03385) with a 3×3 stem for images of 32×32 pixels. The keys of the state dict and the place
of every ReLU are those of the authors' public code. The ReLUs of stem and branches are modules; the one after each sum
is a function call, so that replacing modules steers 9 of 17 ReLUs in ResNet-18, 33 of 49 in ResNet-50 and 101 of 151
in ResNet-152.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """A ResNet from images normalised as in training [n, 3, 32, 32] to logits [n, classes].

    Args:
        blocks: number of blocks in each of the four stages.
        classes: number of classes.
        bottleneck: whether a block has convolutions of 1×1, 3×3 and 1×1 and widens four times, or two of 3×3.
    """

    def __init__(self, blocks: Sequence[int], classes: int, bottleneck: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*_convolution(3, WIDTHS[0], 3), nn.ReLU())
        channels = WIDTHS[0]
        stages: list[nn.Module] = []
        for depth, width in zip(blocks, WIDTHS, strict=True):
            layers = []
            for index in range(depth):
                layers.append(Block(channels, width, 2 if stages and index == 0 else 1, bottleneck))
                channels = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*layers))
        self.conv2_x, self.conv3_x, self.conv4_x, self.conv5_x = stages
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the images ``x``."""
        features = x
        for stage in (self.conv1, self.conv2_x, self.conv3_x, self.conv4_x, self.conv5_x):
            features = stage(features)
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


class Block(nn.Module):
    """A branch of convolutions beside a shortcut, followed by a ReLU that is not a module.

    Args:
        channels: number of input channels.
        width: channels of the branch: as many as the output has, or with ``bottleneck`` a quarter of them.
        stride: stride of the block; 2 halves the resolution.
        bottleneck: kind of branch; see `ResNet`.
    """

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        branch = (
            [*_convolution(channels, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride), nn.ReLU(),
             *_convolution(width, out, 1)]
            if bottleneck
            else [*_convolution(channels, width, 3, stride), nn.ReLU(), *_convolution(width, out, 3)]
        )  # fmt: skip
        self.residual_function = nn.Sequential(*branch)
        identity = stride == 1 and channels == out
        self.shortcut = nn.Sequential(*([] if identity else _convolution(channels, out, 1, stride)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features after the block."""
        return F.relu(self.residual_function(x) + self.shortcut(x))


def _convolution(channels: int, out: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    """Return a convolution, padded to keep the resolution at stride 1, and its batch normalisation."""
    return nn.Conv2d(channels, out, size, stride, size // 2, bias=False), nn.BatchNorm2d(out)


cifar10_resnet18 = partial(ResNet, (2, 2, 2, 2), 10)
cifar10_resnet50 = partial(ResNet, (3, 4, 6, 3), 10, bottleneck=True)
cifar10_resnet152 = partial(ResNet, (3, 8, 36, 3), 10, bottleneck=True)
cifar100_resnet18 = partial(ResNet, (2, 2, 2, 2), 100)
cifar100_resnet50 = partial(ResNet, (3, 4, 6, 3), 100, bottleneck=True)
cifar100_resnet152 = partial(ResNet, (3, 8, 36, 3), 100, bottleneck=True)
