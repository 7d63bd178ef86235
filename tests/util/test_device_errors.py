"""Tests of the errors of a device: each kind is told from the others, and none is taken for a network's."""

from __future__ import annotations

import weakref

import pytest
import torch

from harness.util.device_errors import give_back_memory, is_lost, is_out_of_memory, raise_of_device

FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)
LOST = torch.AcceleratorError("CUDA error: device-side assert triggered")
OTHERS = (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory is what I say"))


@pytest.mark.parametrize("error", FULL, ids=str)
def test_every_shortage_of_memory_is_known_as_one(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_lost(error)
    with pytest.raises(type(error)):
        raise_of_device(error)


def test_a_failed_assertion_on_the_device_loses_it() -> None:
    assert is_lost(LOST)
    assert not is_out_of_memory(LOST)
    with pytest.raises(torch.AcceleratorError):
        raise_of_device(LOST)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_a_network_raises_is_its_own(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert not is_lost(error)
    raise_of_device(error)


def test_a_device_that_no_longer_answers_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead() -> None:
        raise LOST

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert is_lost(OTHERS[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not is_lost(OTHERS[0])


def test_memory_is_given_back_that_only_a_circle_of_references_holds() -> None:
    network = torch.nn.Linear(2, 2)
    circle = [network]
    circle.append(circle)  # type: ignore[arg-type]
    weight = weakref.ref(network.weight)
    del network, circle
    give_back_memory()
    assert weight() is None
