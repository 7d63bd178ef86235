"""Numerical settings under which a trial has the same bits wherever it is computed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    a CPU's convolutions several times over, and are far below what an attack could use.
    """
    tf32 = torch.backends.cudnn.allow_tf32
    deterministic = torch.get_deterministic_debug_mode()
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms() would import the compiler, for seconds
    try:
        with one_thread():
            yield
    finally:
        torch.set_flush_denormal(False)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_deterministic_debug_mode(deterministic)


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
