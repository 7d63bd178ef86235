"""Gradient masking: cheap checks of the gradient on clean images.

Where the gradient is zero, or an attack fails although every image is within reach, surviving gradient attacks is no
evidence of robustness (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019, arXiv 1902.06705).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from harness.api.threat import Flag
from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGES = 32
"""Number of images that are checked, at most, in each batch."""
STEPS = 20
"""Steps of the unbounded attack, of each kind."""
FIRST = 0.5
"""Length of the first of them in every pixel, on average; the n-th is shorter by n."""
STEP = 0.05
"""Length, in L2, of the step that a gradient is checked by: 0.001 in each pixel of 32 × 32 colours."""
ODD = 0.5
"""Share of the predicted rise by which the actual one may differ. On networks of CIFAR-10, steered or not, it differed
by 0.18 at most."""
ODD_SHARE = 0.1
"""Share of the images at which it may differ by more without a flag."""
ROUNDING = 1e-5
"""Largest difference that is taken for rounding, as a share of the logits."""
TINY = 1e-30
"""Keeps the scale of a zero gradient from being 0."""
CROSS_ENTROPY, MARGIN = "cross-entropy", "margin"
SURPRISE = 0.01
"""p-value, against the accuracy of guessing, below which surviving an unbounded attack is flagged."""


def inspect(network: nn.Module, x: Tensor, y: Tensor, losses: Collection[str]) -> None:
    """Warn with a `Flag` of zero or wrong gradients, and of an attack that fails even with the whole box to move in.

    Args:
        network: classifier from images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w] in [0, 1].
        y: their labels, int64 [n].
        losses: the losses whose gradients the attack follows, of `CROSS_ENTROPY` and `MARGIN`; none to look at nothing.
    """
    import torch

    with torch.no_grad():
        logits = network(x[:IMAGES])
        correct = logits.argmax(1) == y[:IMAGES]
    x, y, classes = x[:IMAGES][correct], y[:IMAGES][correct], logits.shape[1]
    if not len(x) or not losses:
        return
    blind = [_is_zero(_gradient(network, x, partial(LOSSES[name], y=y))) for name in losses]
    if zero := int(torch.stack(blind).all(0).sum()):
        warnings.warn(Flag("zero_gradient", f"{zero} of {len(x)} clean images"), stacklevel=2)
    wrong = int(_mismatches(network, x, y).sum())
    if wrong > ODD_SHARE * len(x):
        warnings.warn(Flag("gradient_mismatch", f"{wrong} of {len(x)} clean images"), stacklevel=2)
    left = int(_left_by_the_whole_box(network, x, y).sum())
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
    gradient = _gradient(network, x, partial(margin, y=y))
    if not gradient.isfinite().all():
        raise ModelError("its gradient is NaN or infinite; check its weights and its normalisation")
    if not gradient.any():
        raise ModelError(
            "its gradient is zero, so gradient attacks are blind; take out of the network what rounds, detaches or "
            "saturates"
        )


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each image, [n]."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return by how much the largest other logit exceeds the label's, [n]: its scale is the logits', and no matter."""
    from harness.attacks.square import margins_of

    return -margins_of(logits, y)


LOSSES = {CROSS_ENTROPY: cross_entropy, MARGIN: margin}


def _gradient(network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a loss of the logits with respect to the pixels, [n, c, h, w]; zero if there is none."""
    import torch

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        total = loss(network(x)).sum()
        found = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(x) if found is None else found


def _is_zero(gradient: Tensor) -> Tensor:
    """Return at which images a gradient is exactly zero, bool [n]."""
    return (gradient.flatten(1) == 0).all(1)


def _mismatches(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return at which images a small signed step does not change the loss as its gradient predicts, bool [n].

    The loss is the margin to the runner-up of the clean image.
    """
    import torch

    with torch.no_grad():
        before = network(x)
    rival = before.scatter(1, y[:, None], -torch.inf).argmax(1)
    pair = torch.stack([y, rival], 1)

    def behind(logits: Tensor) -> Tensor:
        return logits.gather(1, pair) @ logits.new_tensor([-1.0, 1.0])

    gradient = _gradient(network, x, behind)
    step = (x + STEP / math.sqrt(x[0].numel()) * gradient.sign()).clamp(0, 1) - x
    with torch.no_grad():
        rise = behind(network(x + step)) - behind(before)
    predicted = (gradient * step).flatten(1).sum(1)
    rounding = ROUNDING * before.gather(1, pair).abs().amax(1)
    agree: Tensor = (rise - predicted).abs() <= ODD * predicted + rounding
    return ~agree  # NaN agrees with nothing


def _left_by_the_whole_box(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return which images survive steps up the margin's gradient with nothing but the box around them, bool [n].

    Whatever the threat's norm, steps are tried in L∞ and in L2. They start at the clean image: in so large a ball, a
    random start would fool any network by noise alone.
    """
    import torch

    left = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for of_sign in (True, False):
        point = x
        for step in range(STEPS):
            if not left.any():
                return left
            gradient = _gradient(network, point, partial(margin, y=y)).nan_to_num()
            largest = gradient.flatten(1).abs().amax(1).clamp(min=TINY).view(-1, 1, 1, 1)
            scaled = gradient / largest  # squares of small gradients would be zero
            length = scaled.flatten(1).square().mean(1).sqrt().clamp(min=TINY).view(-1, 1, 1, 1)
            point = (point + FIRST / (1 + step) * (gradient.sign() if of_sign else scaled / length)).clamp(0, 1)
            with torch.no_grad():
                left &= network(point).argmax(1) == y
    return left


def _above_chance(left: int, n: int, classes: int) -> bool:
    """Tell whether ``left`` of ``n`` survivors are more than a network that guesses would have."""
    from scipy.stats import binomtest

    return bool(binomtest(left, n, 1 / classes, alternative="greater").pvalue < SURPRISE)
