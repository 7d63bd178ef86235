"""A backbone with a linear probe on its features, as an ordinary network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.transfer.linear_probe import LinearProbe


class Head(nn.Module):
    """A linear probe as a module: features [n, d] to answers [n, k]. Mean and scale are buffers, never trained.

    Args:
        probe: fitted probe, whose numbers are rounded to float32.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, probe: LinearProbe) -> None:
        super().__init__()
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.tensor(getattr(probe, name), dtype=torch.float32))
        weight = torch.tensor(probe.weight, dtype=torch.float32)
        self.weight = nn.Parameter(weight.contiguous())  # else the last bits depend on the place in the batch
        self.bias = nn.Parameter(torch.tensor(probe.bias, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """Return the answers."""
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias)


class ProbeNetwork(nn.Module):
    """A backbone and its probe: images [n, c, h, w] in [0, 1] to answers [n, k].

    Args:
        features: module from images to features [n, d].
        head: module from features to answers.
    """

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers for images in [0, 1]."""
        answers: Tensor = self.head(self.features(x))
        return answers
