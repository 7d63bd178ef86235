"""Time, kernels and waits of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from harness.engine.step_graph import WARM_UP, CudaRecorder

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of CUDA's runtime for which the host waits; the profiler itself waits by another."""


def wait(device: str) -> None:
    """Wait for all that the device was asked to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(step: Callable[[], object], device: str, *, least: float = 0.1, most: int = 200) -> float:
    """Return the median seconds of a step after three others, over about ``least`` seconds of measuring."""
    for _ in range(3):
        step()
    wait(device)
    took: list[float] = []
    while len(took) < 3 or (sum(took) < least and len(took) < most):
        started = perf_counter()
        step()
        wait(device)
        took.append(perf_counter() - started)
    return median(took)


@dataclass(frozen=True)
class Launches:
    """What a step asks of a GPU.

    Args:
        kernels: number of kernels a step, copies and fills included.
        waits: number of calls a step for which the host waits.
        names: names of the kernels of all steps.
    """

    kernels: float
    waits: float
    names: tuple[str, ...]


def launches(step: Callable[[], object], steps: int) -> Launches:
    """Count what so many steps on a GPU ask of it."""
    step()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            step()
    events = profile.events() or ()
    names = tuple(event.name for event in events if event.device_type.name == "CUDA")
    return Launches(len(names) / steps, sum(event.name in WAITS for event in events) / steps, names)


def graphed(step: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a step that is the same work on the same memory each time, recorded as a CUDA graph."""
    recorder = CudaRecorder("cuda")

    def work() -> None:
        step()

    for _ in range(WARM_UP):
        recorder.run(work)
    return recorder.record(work)
