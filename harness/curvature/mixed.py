"""One network at many β at once: a batch whose images are each computed under a steering of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness.curvature.families import FAMILIES
from harness.curvature.steering import Steered
from harness.util.device_errors import raise_of_device

PROBED_BETAS = (0.3, 0.7, 0.9)
"""β that the proof deals out among the images of its example."""


class Mixed(nn.Module):
    """A network whose β and c are inputs: one row of parameters for each image of the batch.

    Args:
        steered: the network under any of the steerings that are to be mixed.
    """

    def __init__(self, steered: Steered) -> None:
        super().__init__()
        self.parametric = FAMILIES[steered.steering.family].parametric
        self.curve_parameters: Tensor | None = None
        self.steered = steered.with_curve(self._curve)
        self.network: nn.Module = self.steered
        self.training = steered.training

    def through(self, change: Callable[[nn.Module], nn.Module]) -> Mixed:
        """Return the same network after a change, such as compiled."""
        other = Mixed(self.steered)
        other.network = change(other.steered)
        return other

    def _curve(self, x: Tensor, *which: Any) -> Tensor:
        return self.parametric(x, *which, self.curve_parameters)

    def forward(self, x: Tensor, curve_parameters: Tensor) -> Any:
        """Return the network's output, each image's under the curve of its row.

        Args:
            x: images [n, c, h, w].
            curve_parameters: parameters of the curves, [n, p]; or [p], one curve for all images. See
                `harness.curvature.families.Family`.

        Raises:
            ModelError: the network folds the batch into another dimension, so that rows and images do not match.
        """
        self.curve_parameters = curve_parameters
        return self.network(x)


def mixes(steered: Steered, example: Tensor) -> bool:
    """Prove that mixing β changes no bit of this network's logits and input gradients.

    Every image of a batch of mixed β is compared with the same image in a batch where all have its β.

    Args:
        steered: the network under one of the steerings that are to be mixed.
        example: images that the network takes, [n, c, h, w], n ≥ 2.

    Returns:
        Whether all bits are equal; False also where the curve has no parameters and where the network raises.
    """
    if steered.curve_parameters() is None or len(example) < 2:
        return False
    family, c = FAMILIES[steered.steering.family], steered.steering.c
    betas = PROBED_BETAS[: len(example)]
    rows = [family.curve_parameters(betas[image % len(betas)], c) for image in range(len(example))]
    parameters = torch.tensor(rows, device=example.device)
    try:
        mixed = Mixed(steered)
        found = probe(mixed, example, parameters)
        for start, beta in enumerate(betas):
            alone = probe(steered.with_curve(family.curve(beta, c)), example)
            if not all(
                len(a) == len(b) == len(example) and torch.equal(a[start :: len(betas)], b[start :: len(betas)])
                for a, b in zip(found, alone, strict=True)
            ):
                return False
    except Exception as error:  # whatever a network raises
        raise_of_device(error)
        return False
    return True


def probe(network: Callable[..., Any], example: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return a network's logits, and the gradient of their sum of squares.

    Args:
        network: the network.
        example: images that it takes, [n, c, h, w].
        rows: what else it takes, a row for each image.
    """
    with torch.enable_grad():
        x = example.detach().clone().requires_grad_()
        logits = network(x, *rows)
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
    return logits.detach(), gradient
