"""Placement of workers: the environment that each is started with, and the GPU that it is pinned to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from harness.api.work import Portion
from harness.util.gpus import gpus_of, visible_gpus
from harness.util.threads import available_cores

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""Environment of every worker: one thread, and GPU sums in a fixed order."""
COMPILER_THREADS = 8
"""Most threads that compile for a GPU. On a CPU there is one, since each core has a worker."""
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Names under which torch looks for settings of its GPU allocator; which of several wins depends on its version."""
NO_GPU = "-1"
"""A value of ``CUDA_VISIBLE_DEVICES`` that hides every GPU."""


@dataclass(frozen=True)
class Machine:
    """A machine on which workers are started.

    Args:
        gpus: entries of its GPUs in ``CUDA_VISIBLE_DEVICES``.
        cores: number of its cores.
        environment: environment that workers inherit.
    """

    gpus: tuple[str, ...]
    cores: int
    environment: Mapping[str, str]


def this_machine(device: str) -> Machine:
    """Return this machine. With device "cpu" it is not searched for GPUs."""
    return Machine(() if device == "cpu" else visible_gpus(), available_cores(), os.environ)


def environments(device: str, workers: int | Literal["auto"], machine: Machine) -> list[dict[str, str]]:
    """Return the environment of each worker of a machine, one GPU to a worker, in turn.

    Args:
        device: the benchmark's device. With "cuda:1", all workers are on the second GPU; with "cpu", they see none.
        workers: number of workers; "auto" stands for one a GPU of the device, or one a core without any.
        machine: the machine.

    Raises:
        SpecError: the machine has no such device.
    """
    gpus = gpus_of(device, machine.gpus)
    number = (len(gpus) or machine.cores) if workers == "auto" else workers
    common = environment(bool(gpus), machine.cores // number, machine.environment)
    return [common | {"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)] if gpus else NO_GPU} for n in range(number)]


def environment(gpu: bool, cores: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a worker that have to be set before it imports torch.

    Args:
        gpu: whether it computes on a GPU.
        cores: number of cores that it may use.
        inherited: environment that it has besides; a setting of the allocator there stays as it is.
    """
    threads = max(min(cores, COMPILER_THREADS), 1) if gpu else 1
    found = ENVIRONMENT | {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)}
    if gpu and not any(name in inherited for name in ALLOCATOR_SETTINGS):
        found["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    return found


def pinned(portion: Portion) -> Portion:
    """Return a portion for a worker that sees one GPU: there, "cuda:1" is "cuda", as third-party code says it."""
    device, _, number = portion.task.device.partition(":")
    return replace(portion, task=replace(portion.task, device=device)) if number else portion
