"""Cost of a benchmark in time and memory, extrapolated from a few images.

Both are upper bounds: images that an attack fools are spared the attacks after it, but are counted all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from harness.util.noise import Noise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api.records import Batch
    from harness.api.threat import Threat

WITH_GRAPH, WITHOUT_GRAPH = 1.5, 0.25
"""Peak memory of a pass, relative to the activations that a backward pass keeps: with the backward pass (measured:
1.45), and without (a few layers at a time; generous)."""
WORKER = 500_000_000
"""Bytes of a worker process without a model: mostly torch."""
COPIES = 40
"""Arrays of the size of a batch that an attack holds besides the activations; FAB holds the most."""
FEW, MORE = 2, 64
"""Images that a pass is timed on: more if a pass on the few takes less than `QUICK` seconds."""
QUICK = 0.05
STAGES = 8
"""Stages that are timed of a threat with reduction "mean"."""


@dataclass(frozen=True)
class Costs:
    """Cost of one image, measured on a few.

    Args:
        forward: seconds of a forward pass.
        gradient: seconds of a forward and a backward pass.
        own_step: seconds of one step of the attack's work outside the network; see `Threat.own_work`.
        stage: mean seconds to make the image of a stage with reduction "mean"; 0 with "worst".
        activations: bytes that the network keeps for a backward pass.
        image: bytes of the image itself.
        weights: bytes of the network's parameters and buffers, once for all images.
        classes: number of logits.
    """

    forward: float
    gradient: float
    own_step: float
    stage: float
    activations: int
    image: int
    weights: int
    classes: int


def seconds(threat: Threat, costs: Costs) -> float | None:
    """Return the seconds of all stages for one image under one steering; None if the threat does not say."""
    total = costs.forward
    for stage in threat.stages:
        passes = threat.passes(stage, costs.classes)
        if passes is None:
            return None
        total += costs.stage + passes.forwards * costs.forward
        total += passes.gradients * costs.gradient + passes.own_steps * costs.own_step
    return total


def memory(threat: Threat, costs: Costs, batch_size: int) -> int:
    """Return the bytes that one process needs on the device, libraries aside."""
    activations = costs.activations * (WITH_GRAPH if threat.attacks else WITHOUT_GRAPH)
    return costs.weights + batch_size * int(COPIES * costs.image + activations)


def measure(network: nn.Module, batch: Batch, threat: Threat) -> Costs:
    """Measure the cost of one image, on a few images of a batch.

    Args:
        network: network from images in [0, 1] to logits, on the device of ``batch``.
        batch: images to measure on, at least one.
        threat: threat whose own work is timed, and with reduction "mean" the making of its images.
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
        own_step=_timed(lambda: threat.own_work(x), x) / len(x),
        activations=kept // min(FEW, len(batch)),
        image=x[0].numel() * x.element_size(),
        weights=sum(tensor.numel() * tensor.element_size() for tensor in state),
        classes=classes,
    )


def _stage(threat: Threat, network: nn.Module, batch: Batch) -> float:
    """Return the mean seconds to make an image, over evenly spaced stages: corruptions differ much in their cost."""
    if threat.reduction != "mean" or not threat.stages:
        return 0.0
    few = batch.part(range(min(FEW, len(batch))))
    stages = threat.stages[:: max(len(threat.stages) // STAGES, 1)][:STAGES]
    started = perf_counter()
    for stage in stages:
        threat.perturb(stage, network, few, Noise(0, few.indices))
    return (perf_counter() - started) / len(stages) / len(few)


def gradient(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    """Return the gradient of the cross-entropy at ``x``, and the bytes that autograd kept for it.

    Args:
        network: network from images to logits.
        x: images [n, c, h, w].
        y: their classes, int64 [n].
    """
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
        x, y = x.detach().clone().requires_grad_(), y.clone()  # slices share the storage of the whole batch
        loss = F.cross_entropy(network(x), y, reduction="sum")
        if not loss.requires_grad:  # the network cuts the gradient
            return torch.zeros_like(x), 0
        (result,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if result is None else result, sum(kept.values())


def _timed(step: Callable[[], object], x: Tensor) -> float:
    """Return the seconds of one ``step``, as the mean of several if it is quick."""
    import torch

    def run() -> None:
        step()
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    run()  # the first call also allocates
    started, number = perf_counter(), 0
    while perf_counter() - started < QUICK:
        run()
        number += 1
    return (perf_counter() - started) / number


def available_memory(device: str) -> int | None:
    """Return the free bytes on ``device``, within the limit of a container; None if the system does not say."""
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
