"""Cost of a benchmark in time and memory, extrapolated from the measured cost of an image.

Both are upper bounds: images that an attack fools are spared the attacks after it, but are counted all the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.scheduling.prices import attempts
from harness.util.device_errors import give_back_memory

if TYPE_CHECKING:
    from harness.api.threat import Threat

WORKER = 500_000_000
"""Bytes of a worker process without a model: mostly torch."""
CONTEXT = 1_000_000_000
"""Most bytes of a GPU that are believed to be a process's CUDA context; what is in use beyond is other processes'."""


@dataclass(frozen=True)
class Costs:
    """Cost of one image, in batches as wide as those of a run.

    Args:
        width: images in a batch.
        forward: seconds of a forward pass.
        gradient: seconds of a forward and a backward pass.
        attacks: seconds that a stage takes for an image that survives it, by stage; only of those with a step machine.
        own_step: seconds of one step of another attack's work outside the network; see `Threat.own_work`.
        stage: mean seconds to make the image of a stage with reduction "mean"; 0 with "worst".
        working: bytes of the device for each image of a batch.
        kept: bytes that the network keeps of an image for the backward pass.
        image: bytes of the image itself.
        weights: bytes of the network's parameters and buffers, once for all images.
        classes: number of logits.
    """

    width: int
    forward: float
    gradient: float
    attacks: Mapping[str, float]
    own_step: float
    stage: float
    working: int
    kept: int
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
        if stage in costs.attacks:
            total += costs.attacks[stage]
            continue
        total += costs.stage + passes.forwards * costs.forward
        total += passes.gradients * costs.gradient + passes.own_steps * costs.own_step
    return total


def trials(threat: Threat, costs: Costs) -> int:
    """Return the number of trials of one image under one steering, the clean one among them."""
    return 1 + sum(attempts(threat, stage, costs.classes) for stage in threat.stages)


def memory(costs: Costs, images: int) -> int:
    """Return the bytes that a process needs on the device in batches of so many images; see `process_memory`."""
    return costs.weights + images * costs.working


def process_memory(device: str) -> int:
    """Return the bytes of ``device`` that a worker process takes without a model.

    On a GPU these are the CUDA context and the libraries' workspaces, measured: what is in use and not torch's.
    """
    if not device.startswith("cuda"):
        return WORKER
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return min(total - free - torch.cuda.memory_reserved(device), CONTEXT)


def available_memory(device: str) -> int | None:
    """Return the free bytes on ``device``, within the limit of a container; None if the system does not say."""
    if device.startswith("cuda"):
        import torch

        give_back_memory()
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
