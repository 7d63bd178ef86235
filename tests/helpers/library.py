"""The library's own attacks, the reference that ours are held to."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from harness.attacks.autoattack import Attack, Custom
from harness.attacks.norms import Norm


def perturb(
    stage: str, attack: Attack, network: nn.Module, x: Tensor, y: Tensor, *, norm: Norm, eps: float, seed: int
) -> Tensor:
    """Run one attack of the library on images that the network classifies correctly.

    Args:
        stage: name of the attack, one of ``stages(attack)``.
        attack: version of AutoAttack, or a custom budget.
        network: classifier from images in [0, 1] to logits.
        x: images, float32 [n, c, h, w] in [0, 1].
        y: their labels, int64 [n].
        norm: norm of the ball.
        eps: radius of the ball, in pixels.
        seed: seed of all randomness; the same seed, images and network give the same result.

    Returns:
        One image for each of ``x``, adversarial where the attack succeeded.
    """
    with torch.no_grad():
        classes = network(x[:1]).shape[-1]
    tool = _tool(stage, configured(attack, network, classes, norm, eps, str(x.device)))
    tool.seed = seed
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Tensor = tool.perturb(x.clone(), y.clone())
    return result.detach()


def configured(attack: Attack, network: nn.Module, classes: int, norm: Norm, eps: float, device: str) -> Any:
    """Return AutoAttack's own object, configured, with no more targets than there are other classes."""
    if not isinstance(attack, Custom):
        tool = AutoAttack(network, norm=norm, eps=eps, version=attack, device=device, seed=0)
    else:
        tool = AutoAttack(
            network, norm=norm, eps=eps, version="custom", attacks=list(attack.stages), device=device, seed=0
        )
        for apgd in (tool.apgd, tool.apgd_targeted):
            apgd.n_restarts = attack.restarts
            apgd.n_iter = apgd.n_iter_orig = attack.iterations
            # APGD's checkpoints are set as fractions of its steps (arXiv 2003.01690, Section 3)
            apgd.n_iter_2 = max(int(0.22 * attack.iterations), 1)
            apgd.n_iter_min = max(int(0.06 * attack.iterations), 1)
            apgd.size_decr = max(int(0.03 * attack.iterations), 1)
            apgd.use_largereps = norm == "L1"
        tool.fab.n_iter, tool.fab.n_restarts = attack.iterations, attack.restarts
        tool.square.n_queries, tool.square.n_restarts = attack.queries, attack.restarts
        tool.apgd_targeted.n_target_classes = tool.fab.n_target_classes = attack.targets
    for apgd in (tool.apgd, tool.apgd_targeted):
        apgd.logger = None  # without a logger it warns, and a warning can become a flag
    for targeted in (tool.apgd_targeted, tool.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
    return tool


def _tool(stage: str, tool: Any) -> Any:
    """Return the object among AutoAttack's attacks that runs ``stage``, set up for it."""
    if stage in ("apgd-ce", "apgd-dlr"):
        tool.apgd.loss = stage.removeprefix("apgd-")
        return tool.apgd
    if stage in ("fab", "fab-t"):
        tool.fab.targeted = stage == "fab-t"
        if tool.fab.targeted:
            tool.fab.n_restarts = 1
        return tool.fab
    return {"apgd-t": tool.apgd_targeted, "square": tool.square}[stage]
