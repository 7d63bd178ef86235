"""Is the network robust, or the attack blind? Cheap looks at the gradient on clean images.

A gradient that is zero, or that leads nowhere even when every image is within reach, means that what gradient attacks
leave standing says nothing (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019, arXiv 1902.06705).
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
"""As many are looked at, of each shard."""
STEPS = 20
SURPRISE = 0.01
"""How unlikely the accuracy left by an unbounded attack must be by chance before it is flagged."""


def inspect(network: nn.Module, x: Tensor, y: Tensor, norm: str) -> None:
    """Warn with a `Flag` of zero gradients and of an attack that an unbounded ball does not help.

    Args:
        network: images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w].
        y: their labels, int64 [n].
        norm: "Linf", "L2" or "L1".
    """
    import torch

    with torch.no_grad():
        correct = network(x[:IMAGES]).argmax(1) == y[:IMAGES]
    x, y = x[:IMAGES][correct], y[:IMAGES][correct]
    if not len(x):
        return
    zero = _zero_gradients(network, x, y)
    if zero:
        warnings.warn(Flag("zero_gradient", f"{zero} of {len(x)} clean images"), stacklevel=2)
    left, classes = _left_by_the_whole_box(network, x, y, norm)
    if _above_chance(left, len(x), classes):
        warnings.warn(Flag("large_eps", f"{left} of {len(x)} images survive in the whole pixel box"), stacklevel=2)


def refuse_blind(network: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuse a network on whose gradient no attack can move.

    Args:
        network: images in [0, 1] to logits.
        x: clean images, float32 [n, c, h, w].
        y: their labels, int64 [n].

    Raises:
        ModelError: the gradient of the loss is zero everywhere, or not finite.
    """
    gradient = _gradient(network, x, y)
    if not gradient.isfinite().all():
        raise ModelError("its gradient is NaN or infinite; check its weights and its normalisation")
    if not gradient.any():
        raise ModelError(
            "its gradient is zero, so gradient attacks are blind; take out of the network what rounds, detaches or "
            "saturates"
        )


def _zero_gradients(network: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count the images whose loss has a gradient that is exactly zero, or does not depend on the pixels at all."""
    return int((_gradient(network, x, y).flatten(1) == 0).all(1).sum())


def _gradient(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of the cross-entropy with respect to the pixels [n, c, h, w]; 0 where no path leads there."""
    import torch
    from torch.nn import functional as F

    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(network(x), y, reduction="sum")
        if not loss.requires_grad:
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _left_by_the_whole_box(network: nn.Module, x: Tensor, y: Tensor, norm: str) -> tuple[int, int]:
    """Images that survive APGD from the clean image with an ε that every image in [0, 1] is within; and the classes.

    It starts at the clean image: from a random one, in so large a ball, noise alone would fool any network.
    """
    import torch
    from pyautoattack.autopgd_base import APGDAttack

    pixels = x[0].numel()
    eps = {"Linf": 1.0, "L2": math.sqrt(pixels), "L1": float(pixels)}[norm]
    attack = APGDAttack(
        network, n_iter=STEPS, norm=norm, n_restarts=1, eps=eps, seed=0, loss="ce", device=str(x.device)
    )
    attack.init_hyperparam(x)
    with torch.no_grad():
        classes = network(x[:1]).shape[1]
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            _, survived, _, _ = attack.attack_single_run(x, y, x_init=x)
    except RuntimeError:  # no path from the logits to the pixels: the attack cannot even begin
        return len(x), classes
    return int(survived.sum()), classes


def _above_chance(left: int, n: int, classes: int) -> bool:
    from scipy.stats import binomtest

    return bool(binomtest(left, n, 1 / classes, alternative="greater").pvalue < SURPRISE)
