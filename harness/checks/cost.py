"""What will a benchmark take? Time, memory and room on disk, from what a few images cost.

All of it is an upper bound: no image that an attack defeats on the way is taken off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from harness.attacks.autoattack import Custom, stages
from harness.threats.lp import Lp

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch
    from harness.api.threat import Threat
    from harness.attacks.autoattack import Attack

PLUS_RESTARTS, RAND_GRADIENTS = 5, 20
"""AutoAttack "plus" restarts its untargeted attacks; "rand" averages each gradient of APGD."""
WITH_GRAPH, WITHOUT_GRAPH = 1.5, 0.25
"""The most that a process holds at once, as a share of what is kept for a backward pass: with the gradients on their
way back (measured: 1.45), and where nothing is kept (a network holds a few layers of it; generous)."""
WORKER = 500_000_000
"""Bytes of a worker process before it has a model: mostly torch."""
COPIES = 40
"""Arrays of the size of a batch that an attack holds beside the network's activations; FAB the most of them."""
FEW, MORE = 2, 64
"""Images that a pass is timed on: more where two of them take less than `QUICK` seconds."""
QUICK = 0.05
STAGES = 8
"""Of a "mean" threat, as many are timed."""


@dataclass(frozen=True)
class Costs:
    """What one image costs, measured on a few.

    Args:
        forward: seconds of a forward pass.
        gradient: seconds of a forward and a backward pass.
        projection: seconds of FAB's projection; 0 where there is none.
        stage: seconds to have the images of a stage of a "mean" threat, on the average; 0 for others.
        activations: bytes that the network keeps for a backward pass.
        image: bytes of the image itself.
        weights: bytes of the network's parameters and buffers, once for all images.
        classes: logits.
    """

    forward: float
    gradient: float
    projection: float
    stage: float
    activations: int
    image: int
    weights: int
    classes: int


@dataclass(frozen=True)
class Passes:
    """How often an attack runs an image through the network, and how often FAB projects it."""

    forwards: int = 0
    gradients: int = 0
    projections: int = 0

    def seconds(self, costs: Costs) -> float:
        """For one image."""
        through = self.forwards * costs.forward + self.gradients * costs.gradient
        return through + self.projections * costs.projection


def passes(stage: str, attack: Attack, classes: int) -> Passes:
    """What AutoAttack's ``stage`` needs for an image that it does not defeat (arXiv 2003.01690, Section 4)."""
    budget = attack if isinstance(attack, Custom) else Custom(stages=stages(attack))
    untargeted = stage in ("apgd-ce", "apgd-dlr", "fab")
    restarts = PLUS_RESTARTS if attack == "plus" and untargeted else budget.restarts
    targets = min(budget.targets, classes - 1)
    if stage in ("apgd-ce", "apgd-dlr"):
        return Passes(gradients=restarts * (budget.iterations + 1) * (RAND_GRADIENTS if attack == "rand" else 1))
    if stage == "apgd-t":
        return Passes(gradients=targets * restarts * (budget.iterations + 1))
    if stage == "square":
        return Passes(forwards=restarts * (budget.queries + 1))
    steps = budget.iterations * (targets if stage == "fab-t" else restarts)
    backward = 1 if stage == "fab-t" else classes  # one for each class
    return Passes(forwards=steps, gradients=steps * backward, projections=steps)


def seconds(threat: Threat, costs: Costs) -> float | None:
    """Of one process, for all stages on one image under one steering; None for a threat whose price is not known."""
    if isinstance(threat, Lp):
        total = costs.forward
        for stage in threat.stages:
            total += passes(stage, threat.attack, costs.classes).seconds(costs)
        return total
    if not threat.attacks:
        return costs.forward + len(threat.stages) * (costs.forward + costs.stage)
    return None


def memory(threat: Threat, costs: Costs, batch_size: int) -> int:
    """Bytes that one process needs on the device, its libraries aside."""
    alive = costs.activations * (WITH_GRAPH if threat.attacks else WITHOUT_GRAPH)
    return costs.weights + batch_size * int(COPIES * costs.image + alive)


def measure(network: nn.Module, batch: Batch, threat: Threat) -> Costs:
    """Time ``network`` on a few images of ``batch``, and count what it keeps.

    Args:
        network: images in [0, 1] to logits, on the device of ``batch``.
        batch: at least one image.
        threat: says whether there is a projection of FAB to time.
    """
    import torch

    x, y = batch.x[:FEW], batch.y[:FEW]
    _, kept = gradient(network, x, y)
    first = _timed(lambda: gradient(network, x, y), x)
    if first < QUICK:
        x, y = batch.x[:MORE], batch.y[:MORE]
    with torch.no_grad():
        classes = network(x).shape[1]
        forward = _timed(lambda: network(x), x)
    state = [*network.parameters(), *network.buffers()]
    return Costs(
        forward=forward / len(x),
        gradient=(_timed(lambda: gradient(network, x, y), x) if first < QUICK else first) / len(x),
        stage=_stage(threat, network, batch),
        projection=_timed(lambda: _project(x, threat.norm), x) / len(x) if isinstance(threat, Lp) else 0.0,
        activations=kept // min(FEW, len(batch)),
        image=x[0].numel() * x.element_size(),
        weights=sum(tensor.numel() * tensor.element_size() for tensor in state),
        classes=classes,
    )


def _stage(threat: Threat, network: nn.Module, batch: Batch) -> float:
    """Seconds for an image, over stages spread evenly: corruptions differ much in what they cost."""
    if threat.reduction != "mean" or not threat.stages:
        return 0.0
    few = batch.part(range(min(FEW, len(batch))))
    stages = threat.stages[:: max(len(threat.stages) // STAGES, 1)][:STAGES]
    started = perf_counter()
    for stage in stages:
        threat.perturb(stage, network, few, seed=0)
    return (perf_counter() - started) / len(stages) / len(few)


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """The gradient of the cross-entropy at ``x`` [n, c, h, w], and the bytes that the network kept for it."""
    import torch
    from torch.nn import functional as F

    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x, y = x.detach().clone().requires_grad_(), y.clone()  # else the storage of the whole batch would count
        loss = F.cross_entropy(network(x), y, reduction="sum")
        if not loss.requires_grad:  # no path from the logits to the pixels
            return torch.zeros_like(x), 0
        (result,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if result is None else result, sum(kept.values())


def _project(x: Tensor, norm: str) -> None:
    """FAB's projection of two points an image on a hyperplane."""
    from pyautoattack import fab_projections

    from harness.attacks import fab_projection

    points = x.flatten(1).repeat(2, 1)
    project = {"Linf": fab_projection.linf, "L2": fab_projection.l2, "L1": fab_projections.projection_l1}[norm]
    normals = points - points.mean(1, keepdim=True)
    project(points, normals, (normals * points).sum(1) + 0.1 * normals.abs().sum(1))


def _timed(step: Callable[[], object], x: Tensor) -> float:
    """Seconds of one ``step``, the mean of a few where it is quick."""
    import torch

    def done() -> None:
        step()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    done()  # the first call also allocates
    started, number = perf_counter(), 0
    while perf_counter() - started < QUICK:
        done()
        number += 1
    return (perf_counter() - started) / number


def available_memory(device: str) -> int | None:
    """Bytes that are free on ``device``; of a container what it may have. None where the system does not say."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        try:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(free, int(text)) if text.isdecimal() else free
