"""GPUs by their entries in ``CUDA_VISIBLE_DEVICES``: numbers, UUIDs, MIG instances, or none."""

from __future__ import annotations

import pytest
import torch

from harness.errors import SpecError
from harness.util import gpus
from harness.util.gpus import entries, gpus_of, mig_instances, visible_gpus

WHOLE = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-8b0ee919-64b5-9b73-9c3f-5c4d2a1b0e7f)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-0f6a8c11-2d3e-4f50-8a9b-1c2d3e4f5a6b)
"""
SLICED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-aab6d9b9-2c9f-4b9b-8b5f-0a2f5a9c1d11)
  MIG 3g.20gb     Device  0: (UUID: MIG-GPU-aab6d9b9-2c9f-4b9b-8b5f-0a2f5a9c1d11/2/0)
"""
INSTANCES = (
    "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
    "MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb",
    "MIG-GPU-aab6d9b9-2c9f-4b9b-8b5f-0a2f5a9c1d11/2/0",
)


@pytest.mark.parametrize(("listing", "found"), [(WHOLE, ()), (SLICED, INSTANCES), ("", ()), ("No devices found.", ())])
def test_the_listing_of_nvidia_smi_names_the_mig_instances(listing: str, found: tuple[str, ...]) -> None:
    assert mig_instances(listing) == found


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("0", ["0"]),
        ("2,5", ["2", "5"]),
        ("2, 5", ["2", "5"]),
        ("GPU-8b0e,GPU-0f6a", ["GPU-8b0e", "GPU-0f6a"]),
        ("MIG-c6d4,MIG-GPU-aab6/2/0", ["MIG-c6d4", "MIG-GPU-aab6/2/0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,-1,0", ["1"]),
        ("1,,0", ["1"]),
        ("1,none,0", ["1"]),
    ],
)
def test_an_invalid_entry_ends_the_list(visible: str, found: list[str]) -> None:
    assert list(entries(visible)) == found


@pytest.mark.parametrize(
    ("visible", "listing", "count", "found"),
    [
        (None, WHOLE, 2, ("0", "1")),
        (None, "", 0, ()),
        (None, SLICED, 1, INSTANCES),  # CUDA shows a process one of them
        ("MIG-c6d4,MIG-cba6", SLICED, 1, ("MIG-c6d4", "MIG-cba6")),
        ("2,5", WHOLE, 2, ("2", "5")),
        ("0,7", WHOLE, 1, ("0",)),  # there is no GPU 7
        ("0", "", 0, ()),  # no driver
        ("", SLICED, 0, ()),
        ("-1", WHOLE, 0, ()),
    ],
)
def test_visible_gpus_are_entries_not_a_count(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, listing: str, count: int, found: tuple[str, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(gpus, "_listing", lambda: listing)
    assert visible_gpus() == found


@pytest.mark.parametrize(
    ("device", "found"),
    [("auto", ("2", "5")), ("cuda", ("2", "5")), ("cuda:0", ("2",)), ("cuda:1", ("5",)), ("cpu", ())],
)
def test_a_device_means_some_of_the_gpus(device: str, found: tuple[str, ...]) -> None:
    assert gpus_of(device, ("2", "5")) == found


def test_a_gpu_that_is_not_there_is_named() -> None:
    assert gpus_of("auto", ()) == ()
    told = r"^device: cuda was asked for, but torch finds 0 GPUs here; set device: auto, or install a torch"
    with pytest.raises(SpecError, match=told):
        gpus_of("cuda", ())
    told = r"^device: cuda:2 was asked for, but torch finds 2 GPUs here, the last of which is cuda:1; set device: auto"
    with pytest.raises(SpecError, match=told):
        gpus_of("cuda:2", ("2", "5"))
