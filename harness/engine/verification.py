"""Verification of adversarial images: an attack's output is checked, and the plain network is asked again."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from harness.api.threat import Threat, beyond_box
from harness.engine.numerics import float32_by
from harness.errors import InvalidAdversary, ModelError


def verify(threat: Threat, x: Tensor, perturbed: Tensor, normalised: bool = False) -> None:
    """Check that perturbed images are valid for any threat, and allowed by this one.

    Args:
        threat: the threat whose stage made them.
        x: the images [n, c, h, w].
        perturbed: the images that the stage made of them, [n, c, h, w]; must be finite and in [0, 1].
        normalised: whether images are normalised (``protocol: paper``), so that neither the box nor the threat applies.

    Raises:
        InvalidAdversary: one of them is not; none is scored.
    """
    if perturbed.shape != x.shape:
        raise InvalidAdversary(
            f"the attack returned images of shape {list(perturbed.shape)} for {list(x.shape)}", "invalid"
        )
    if not perturbed.isfinite().all():
        raise InvalidAdversary("the attack returned NaN or infinite pixels; nothing of it is scored", "invalid")
    if normalised:
        return
    low, high = perturbed.min().item(), perturbed.max().item()
    if excess := beyond_box(low, high):
        raise InvalidAdversary(
            f"the attack returned pixels in [{low:.6g}, {high:.6g}], not [0, 1]: {excess}; clip them to [0, 1]",
            "invalid",
        )
    threat.check(x, perturbed)


def logits(network: nn.Module, x: Tensor, *rows: Tensor) -> Tensor:
    """Return the logits [n, classes] of a fresh forward pass in full float32, whatever a plug-in has allowed.

    Args:
        network: network to ask.
        x: images [n, c, h, w].
        rows: what else it takes, a row for each image.

    Raises:
        ModelError: they have another shape, or are not finite.
    """
    with torch.no_grad(), float32_by("ieee"), torch.autocast(x.device.type, enabled=False):
        result = answers_for(x, network(x, *rows))
    if not result.isfinite().all():
        raise ModelError("its logits are NaN or infinite on images in [0, 1]; check the weights and the normalisation")
    return result


def answers_for(x: Tensor, answers: object) -> Tensor:
    """Return what a network answers for images [n, c, h, w], in float32, if it has the shape [n, k].

    Raises:
        ModelError: it has another shape, or is no tensor of floating-point numbers.
    """
    if not isinstance(answers, Tensor):
        raise ModelError(f"expected logits of shape [{len(x)}, classes], found {type(answers).__name__}")
    if answers.ndim != 2 or len(answers) != len(x):
        squeezed = len(x) == 1 and answers.ndim == 1
        remedy = "; it drops the dimension of the batch: take out what squeezes its answers" if squeezed else ""
        raise ModelError(f"expected logits of shape [{len(x)}, classes], found {list(answers.shape)}{remedy}")
    if not answers.is_floating_point():
        raise ModelError(f"expected logits in floating point, found {answers.dtype}; return them before any rounding")
    return answers.float()


def require_gradient(network: nn.Module, x: Tensor) -> None:
    """Refuse a network that no gradient attack can be made on.

    Args:
        network: network to ask.
        x: images [n, c, h, w].

    Raises:
        ModelError: its answers have no gradient with respect to the images.
    """
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have none, which is what is asked here
        images = x.detach().clone().requires_grad_()
        total = answers_for(x, network(images)).sum()
        found = torch.autograd.grad(total, images, allow_unused=True)[0] if total.requires_grad else None
    if found is None:
        raise ModelError(
            "its answers have no gradient with respect to the image, which these attacks need: a part of it is "
            "quantised, detached, or runs under torch.no_grad(); rewrite that part, or attack without gradients "
            "(attack: {stages: [square]})"
        )
