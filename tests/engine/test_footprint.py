"""What a network keeps of an image: counted by hand for a small one."""

from __future__ import annotations

import torch
from torch import nn

from harness.engine.footprint import kept_bytes


def test_kept_is_what_autograd_keeps_of_an_image_whatever_its_batch() -> None:
    """ReLU's result, four floats; the weights are not of an image, and a frozen linear layer keeps nothing else."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4)).requires_grad_(False)
    images = torch.rand(10, 1, 8, 8)
    assert kept_bytes(net, images) == kept_bytes(net, images[3:5]) == 16


def test_a_network_that_keeps_nothing_keeps_a_byte() -> None:
    assert kept_bytes(nn.Flatten(), torch.rand(2, 1, 8, 8)) == 1
