"""Numerical settings under which a trial has the same bits wherever it is computed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

Float32 = Literal["ieee", "tf32"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute the block on one thread of torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute the block on one thread, in full float32, with deterministic kernels and without denormals.

    Sums over more threads are taken in another order, so their last bit differs. Denormals arise in φ's tail; they slow
    a CPU's convolutions several times over, and are far below what an attack could use. An operation that has no
    deterministic kernel warns; see `is_nondeterministic`.
    """
    deterministic = torch.get_deterministic_debug_mode()
    allocation: Any = torch.utils.deterministic
    filled = allocation.fill_uninitialized_memory
    timed = torch.backends.cudnn.benchmark
    torch.set_flush_denormal(True)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms() would import the compiler, for seconds
    allocation.fill_uninitialized_memory = False  # every new tensor would be filled with NaN first
    torch.backends.cudnn.benchmark = False  # else a clock chooses among the deterministic kernels
    try:
        with one_thread(), float32_by("ieee"):
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_deterministic_debug_mode(deterministic)
        allocation.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = timed


@contextmanager
def float32_by(how: Float32) -> Iterator[None]:
    """Compute matrix products and convolutions of float32 in the block in full ("ieee"), or in TF32 on a GPU.

    Torch has two interfaces for this, and reading the older one raises where they disagree. So both are set, and both
    have what they had before at the end. A plug-in may use either.
    """
    newer = [place.fp32_precision for place in _places()]
    older = _older(newer)
    _set_float32("high" if how == "tf32" else "highest", [how] * len(newer))
    try:
        yield
    finally:
        _set_float32(older, newer)


def _older(newer: list[str]) -> str:
    """Return the older interface's setting of matrix products; the newer one's where they disagree."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if newer[0] == "tf32" else "highest"


def _set_float32(older: str, newer: list[str]) -> None:
    torch.set_float32_matmul_precision(older)
    torch.backends.cudnn.allow_tf32 = newer[_CONVOLUTIONS] == "tf32"
    for place, precision in zip(_places(), newer, strict=True):
        place.fp32_precision = precision


def _places() -> tuple[Any, ...]:
    """Return everything that can round float32 on its own, on a GPU and on a CPU."""
    cuda, cudnn, cpu = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return cuda.matmul, cudnn.conv, cudnn.rnn, cpu.matmul, cpu.conv, cpu.rnn  # type: ignore[attr-defined]


_CONVOLUTIONS = 1


def same_bits(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Return whether tensors are equal, one by one; NaN equals NaN."""
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num())
        and torch.equal(a.isfinite(), b.isfinite())
        and torch.equal(a.isnan(), b.isnan())
        for a, b in zip(some, others, strict=True)
    )


def is_nondeterministic(message: str) -> bool:
    """Return whether a warning's text says that an operation has no deterministic kernel."""
    return "does not have a deterministic implementation" in message


def resolve(device: str) -> str:
    """Return the device that ``auto`` stands for, a GPU where there is one; any other device as it is."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_memory() -> None:
    """Keep freed memory for the next batch, where the C library is glibc: else it goes back page by page, and returns.

    Blocks of a batch's size are otherwise mapped and zeroed at each operation, which takes a third of a step.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    except (OSError, AttributeError):
        return


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
