"""A network with its normalisation inside, so that a threat can live in pixel space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Channelwise(nn.Module):
    """Mean and std are buffers that are saved: they move with the network and belong to the hash of its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))


class Normalised(_Channelwise):
    """``network((x − mean) / std)``, channel by channel.

    Args:
        network: takes normalised images [n, c, h, w].
        mean: of each channel, in pixels of [0, 1].
        std: of each channel, > 0.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images in [0, 1]."""
        logits: Tensor = self.network(self.normalise(x))
        return logits

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [0, 1] as the network inside takes them."""
        return (x - self.mean) / self.std


class Denormalised(_Channelwise):
    """``x · std + mean``, channel by channel: what `Normalised` did, undone."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images as pixels in [0, 1]."""
        return x * self.std + self.mean
