"""Gradient masking: cheap checks of the gradient on clean images.

Where the gradient is zero, or an attack fails although every image is within reach, surviving gradient attacks is no
evidence of robustness (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019, arXiv 1902.06705).
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from harness.api.threat import Flag
from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGES = 32
"""Number of images that are checked, at most, in each batch."""
STEPS = 20
"""Steps of the unbounded attack."""
SURPRISE = 0.01
"""p-value, against the accuracy of guessing, below which surviving an unbounded attack is flagged."""


def inspect(network: nn.Module, x: Tensor, y: Tensor, norm: str) -> None:
    """Warn with a `Flag` of zero gradients, and of an attack that fails even in an unbounded ball.

    Args:
        network: classifier from images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w] in [0, 1].
        y: their labels, int64 [n].
        norm: norm of the ball: "Linf", "L2" or "L1".
    """
    import torch

    with torch.no_grad():
        correct = network(x[:IMAGES]).argmax(1) == y[:IMAGES]
    x, y = x[:IMAGES][correct], y[:IMAGES][correct]
    if not len(x):
        return
    gradient = _gradient(network, x, y)
    zero = len(x) if gradient is None else int((gradient.flatten(1) == 0).all(1).sum())
    if zero:
        warnings.warn(Flag("zero_gradient", f"{zero} of {len(x)} clean images"), stacklevel=2)
    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    left = len(x) if gradient is None else _left_by_the_whole_box(network, x, y, norm)
    if _above_chance(left, len(x), classes):
        warnings.warn(Flag("large_eps", f"{left} of {len(x)} images survive in the whole pixel box"), stacklevel=2)


def refuse_blind(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuse a network whose gradient is of no use to any attack.

    Args:
        network: classifier from images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w] in [0, 1].
        y: their labels, int64 [n].

    Raises:
        ModelError: the gradient of the loss is zero everywhere, or not finite.
    """
    gradient = _gradient(network, x, y)
    if gradient is not None and not gradient.isfinite().all():
        raise ModelError("its gradient is NaN or infinite; check its weights and its normalisation")
    if gradient is None or not gradient.any():
        raise ModelError(
            "its gradient is zero, so gradient attacks are blind; take out of the network what rounds, detaches or "
            "saturates"
        )


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
    """Return the gradient of the cross-entropy with respect to the pixels, [n, c, h, w]; None if there is none."""
    import torch
    from torch.nn import functional as F

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(network(x), y, reduction="sum")
        if not loss.requires_grad:
            return None
        gradient: Tensor | None = torch.autograd.grad(loss, x, allow_unused=True)[0]
    return gradient


def _left_by_the_whole_box(network: nn.Module, x: Tensor, y: Tensor, norm: str) -> int:
    """Count the images that survive APGD in a ball that holds all of [0, 1].

    The attack starts at the clean image: in so large a ball, a random start would fool any network by noise alone.
    """
    from pyautoattack.autopgd_base import APGDAttack

    from harness.util.randomness import seeded

    pixels = x[0].numel()
    eps = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[norm]
    attack = APGDAttack(
        network, n_iter=STEPS, norm=norm, n_restarts=1, eps=eps, seed=0, loss="ce", device=str(x.device)
    )
    attack.init_hyperparam(x)
    with seeded(0, x), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, survived, _, _ = attack.attack_single_run(x, y, x_init=x)
    return int(survived.sum())


def _above_chance(left: int, n: int, classes: int) -> bool:
    """Tell whether ``left`` of ``n`` survivors are more than a network that guesses would have."""
    from scipy.stats import binomtest

    return bool(binomtest(left, n, 1 / classes, alternative="greater").pvalue < SURPRISE)
