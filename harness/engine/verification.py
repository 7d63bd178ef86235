"""An attack is never trusted: what it returned is checked, and the network is asked again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.api.threat import SLACK_BOX, Threat
from harness.errors import InvalidAdversary, ModelError


def allowed(threat: Threat, x: Tensor, perturbed: Tensor, anywhere: bool = False) -> None:
    """Refuse what no threat allows, then what this one does not.

    Args:
        threat: whose stage it was.
        x: the images [n, c, h, w].
        perturbed: what the stage made of them: as many, finite, in [0, 1].
        anywhere: whether they are normalised, so that of the box and the threat nothing can be said.

    Raises:
        InvalidAdversary: never scored.
    """
    if perturbed.shape != x.shape:
        raise InvalidAdversary(f"the attack returned {list(perturbed.shape)} for {list(x.shape)}", "invalid")
    if not perturbed.isfinite().all():
        raise InvalidAdversary("the attack returned NaN or infinite pixels; nothing of it is scored", "invalid")
    if anywhere:
        return
    low, high = perturbed.min().item(), perturbed.max().item()
    if low < -SLACK_BOX or high > 1 + SLACK_BOX:
        raise InvalidAdversary(f"the attack returned pixels in [{low:.6g}, {high:.6g}], not [0, 1]", "invalid")
    threat.check(x, perturbed)


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """A fresh forward pass: [n, c, h, w] to [n, classes], checked to be finite numbers."""
    with torch.no_grad():
        result = network(x)
    if not isinstance(result, Tensor) or result.ndim != 2 or len(result) != len(x):
        found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ModelError(f"expected logits of shape [{len(x)}, classes], found {found}")
    if not result.isfinite().all():
        raise ModelError("its logits are NaN or infinite on images in [0, 1]; check the weights and the normalisation")
    return result
