"""Small plain CNNs for CIFAR-10 of the literature on verification: 4×4 convolutions of stride 2, then linear layers.

The networks of Wong et al. 2018 (arXiv 1805.12514), Dathathri et al. 2020 (CNN-A, arXiv 2010.11645), Lu & Kumar 2020
(OVAL, arXiv 1912.01329), Singh et al. 2019 (ConvSmall, ERAN) and VNN-COMP 2021 (Marabou). The keys of the state dict
are those of the authors' files. Every ReLU is a module.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

SIDE = 32
"""Pixels of a side of an image."""
KERNEL, STRIDE = 4, 2


def plain_cnn(channels: Sequence[int], hidden: Sequence[int], padding: int) -> nn.Sequential:
    """Build a network from normalised images [n, 3, 32, 32] to logits [n, 10], untrained.

    Args:
        channels: output channels of each convolution.
        hidden: widths of the hidden linear layers.
        padding: zeros around the input of each convolution, in pixels.
    """
    layers: list[nn.Module] = []
    side = SIDE
    for inputs, outputs in zip((3, *channels), channels, strict=False):
        layers += [nn.Conv2d(inputs, outputs, KERNEL, STRIDE, padding), nn.ReLU()]
        side = (side + 2 * padding - KERNEL) // STRIDE + 1
    layers.append(nn.Flatten())
    features = channels[-1] * side**2
    for inputs, outputs in zip((features, *hidden), hidden, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 10))


cnn_a = partial(plain_cnn, (16, 32), (100,), padding=1)
oval_base = partial(plain_cnn, (8, 16), (100,), padding=1)
conv_small = partial(plain_cnn, (16, 32), (100,), padding=0)
marabou_large = partial(plain_cnn, (32, 64), (128, 64), padding=0)
