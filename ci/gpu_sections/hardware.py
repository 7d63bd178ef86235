"""Which device it is, and how fast: the rates that every other number is to be read against."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from time import perf_counter

import torch

from gpu_sections.section import Finding, Place, table
from gpu_sections.timing import seconds, wait
from harness.engine.numerics import float32_by

LAUNCHES = 500
"""Kernels that are launched one after the other: fewer than a GPU lets wait before the host has to."""


def device(place: Place) -> Iterator[Finding]:
    """Name the device and the software on it, and measure the rates."""
    yield table([{"what": what, "value": value} for what, value in _names(place).items()])
    yield table([{"rate": what, "value": value} for what, value in _rates(place).items()])


def _names(place: Place) -> dict[str, str]:
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "triton": _version("triton")}
    if not place.is_gpu:
        return {"device": f"CPU ({platform.machine()}), pretending"} | versions
    own = torch.cuda.get_device_properties(0)
    return {
        "device": own.name,
        "memory": f"{own.total_memory / 2**30:.0f} GiB",
        "multiprocessors": str(own.multi_processor_count),
        "driver": _driver(),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    } | versions


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _rates(place: Place) -> dict[str, str]:
    size = 8192 if place.is_gpu else 256
    source = torch.randn(2**29 if place.is_gpu else 2**20, device=place.device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes / seconds(lambda: target.copy_(source), place.device)
    rates = {"copy, read and written": f"{moved / 1e9:,.0f} GB/s"}
    for name, dtype in (("fp32", torch.float32), ("TF32", torch.float32), ("bf16", torch.bfloat16)):
        matrix = torch.randn(size, size, device=place.device, dtype=dtype)
        with float32_by("tf32" if name == "TF32" else "ieee"):
            took = seconds(lambda matrix=matrix: matrix @ matrix, place.device)  # type: ignore[misc]
        rates[f"matrix product of {size}, {name}"] = f"{2 * size**3 / took / 1e12:,.2f} TFLOP/s"
    return rates | {"host time of a kernel launch": f"{1e6 * _launch(place):.2f} µs"}


def _launch(place: Place) -> float:
    """Return the seconds that the host takes to launch a kernel on one number, the least of a few measurements."""
    number, least = torch.zeros(1, device=place.device), float("inf")
    for _ in range(5):
        wait(place.device)
        started = perf_counter()
        for _ in range(LAUNCHES):
            number.add_(1)
        least = min(least, (perf_counter() - started) / LAUNCHES)
    return least
