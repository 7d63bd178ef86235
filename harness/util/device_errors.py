"""Errors of a device, which say nothing about the network that ran on it: no memory left, or the device is lost."""

from __future__ import annotations

import gc

import torch

NO_MEMORY = (
    "out of memory", "can't allocate memory", "ALLOC_FAILED", "unable to find an engine",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)  # fmt: skip
"""Words by which errors without a type of their own say it: of the CPU's allocator, CUDA, cuDNN and cuBLAS."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error says that memory was short, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def raise_of_device(error: BaseException) -> None:
    """Raise ``error`` again if it is the device's, not the network's: for handlers of whatever a network raises."""
    if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error):
        raise error


def give_back_memory() -> None:
    """Return to the GPU what torch keeps for later batches, and networks that only refer to each other any more."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def is_lost(error: BaseException) -> bool:
    """Return whether the device is of no use to this process any more, as after a failed assertion on it.

    CUDA then fails every later call of the process, whatever it is. Only another process can go on.

    Args:
        error: what was raised last. Where the device does not even come to use, an error of its own is its loss.
    """
    if isinstance(error, torch.AcceleratorError) and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return not is_out_of_memory(error)
    return not device_answers()


def device_answers() -> bool:
    """Return whether the GPU still works for this process; also where none is used."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return True
    try:
        torch.cuda.synchronize()
    except Exception:  # whatever it raises, it does not work
        return False
    return True
