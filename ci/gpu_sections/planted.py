"""Networks that go wrong on purpose, for models of kind checkpoint; workers import them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.architectures.digits_net import DigitsNet
from harness.models.demo import Demo

MAIN = "CT_GPU_MAIN"
"""Variable that holds the process in which no network asserts: the one that prepares the run."""


class Asserting(nn.Module):
    """The demo network; in a worker, its first batch ends in a failed assertion of the device."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 10]."""
        if os.environ[MAIN] != str(os.getpid()):
            if not x.is_cuda:
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            x = x[torch.full((len(x),), 10**6, device=x.device)]  # an index out of range, found out on the device
        return self.network(x)  # type: ignore[no-any-return]


def asserting() -> nn.Module:
    """Build the demo network, which asserts in a worker."""
    network = Demo(name="digits_plain").load(offline=True).network
    assert isinstance(network, DigitsNet)
    return Asserting(network).eval()


class Short(nn.Module):
    """A network in whose batches memory becomes short.

    Args:
        network: network that computes the answers.
        shorten: called with each batch and the number of those before it; takes memory away, or raises that there is
            none.
    """

    def __init__(self, network: nn.Module, shorten: Callable[[Tensor, int], None]) -> None:
        super().__init__()
        self.network, self.widths = network, list[int]()  # one list, also in copies that share the weights
        self._shorten = shorten

    def forward(self, x: Tensor) -> Any:
        """Logits [n, classes]."""
        self._shorten(x, len(self.widths))
        self.widths.append(len(x))
        return self.network(x)
