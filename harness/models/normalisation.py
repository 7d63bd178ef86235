"""Networks with their normalisation inside, so that threats are defined in pixel space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Channelwise(nn.Module):
    """Mean and std as persistent buffers, which move with the network and are part of the hash of its weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))


class Normalised(_Channelwise):
    """The network ``network((x − mean) / std)``, computed channel by channel.

    Args:
        network: network of normalised images [n, c, h, w].
        mean: mean of each channel, in pixels in [0, 1].
        std: standard deviation of each channel, > 0.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images in [0, 1]."""
        logits: Tensor = self.network(self.normalise(x))
        return logits

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise images in [0, 1] for the network inside."""
        return (x - self.mean) / self.std


class Denormalised(_Channelwise):
    """The inverse of the normalisation in `Normalised`: ``x · std + mean``, computed channel by channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return normalised images as pixels in [0, 1]."""
        return x * self.std + self.mean
