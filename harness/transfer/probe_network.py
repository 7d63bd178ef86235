"""A backbone's features, and a linear probe on them: an ordinary network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.transfer.linear_probe import Fit


class Head(nn.Module):
    """Features, standardised, to answers: [n, d] to [n, k]. Mean and scale are buffers, so they are never trained.

    Args:
        fit: its numbers, rounded to float32.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        for name in ("mean", "scale"):
            self.register_buffer(name, torch.tensor(getattr(fit, name), dtype=torch.float32))
        self.weight = nn.Parameter(torch.tensor(fit.weight, dtype=torch.float32))
        self.bias = nn.Parameter(torch.tensor(fit.bias, dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """The answers."""
        return F.linear((features - self.mean) / self.scale, self.weight, self.bias)


class Probed(nn.Module):
    """Images in [0, 1] to the answers of a probe, [n, c, h, w] to [n, k].

    Args:
        features: images to features, [n, d].
        head: features to answers.
    """

    def __init__(self, features: nn.Module, head: Head) -> None:
        super().__init__()
        self.features = features
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """The answers for images in [0, 1]."""
        answers: Tensor = self.head(self.features(x))
        return answers
