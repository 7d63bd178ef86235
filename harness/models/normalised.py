"""A network with its normalisation inside, so that a threat can live in pixel space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """``network((x − mean) / std)``, channel by channel.

    Mean and std are buffers that are saved: they move with the network and belong to the hash of its weights.

    Args:
        network: takes normalised images [n, c, h, w].
        mean: of each channel, in pixels of [0, 1].
        std: of each channel, > 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The logits of images in [0, 1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits
