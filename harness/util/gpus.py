"""GPUs that a process may use, as ``CUDA_VISIBLE_DEVICES`` names them. None of them is touched."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from itertools import takewhile

from harness.errors import SpecError

ENTRY = re.compile(r"\d+|(GPU|MIG)-.+")
"""A valid entry of ``CUDA_VISIBLE_DEVICES``: a number, or the UUID of a GPU or of a MIG instance."""
MIG_INSTANCE = re.compile(r"\(UUID: (MIG-[^)]+)\)")
"""UUID of a MIG instance in the listing of ``nvidia-smi -L``."""
PATIENCE = 30.0
"""Seconds that ``nvidia-smi`` may take; without its daemon it first loads the driver."""


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, each by its entry in ``CUDA_VISIBLE_DEVICES``.

    A MIG instance counts as a GPU. Where there are some, torch counts one alone: CUDA shows a process no second one.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = mig_instances(_listing()) if visible is None else entries(visible)
    count = torch.cuda.device_count()  # of those that exist
    if any(entry.startswith("MIG-") for entry in found):
        return found if count else ()
    return tuple(map(str, range(count))) if visible is None else found[:count]


def entries(visible: str) -> tuple[str, ...]:
    """Return the entries of a value of ``CUDA_VISIBLE_DEVICES``. As in CUDA, the first invalid one ends the list."""
    return tuple(takewhile(ENTRY.fullmatch, map(str.strip, visible.split(","))))


def mig_instances(listing: str) -> tuple[str, ...]:
    """Return the UUIDs of the MIG instances in a listing of ``nvidia-smi -L``, in its order."""
    return tuple(MIG_INSTANCE.findall(listing))


def gpus_of(device: str, visible: Sequence[str]) -> tuple[str, ...]:
    """Return those of the visible GPUs that a benchmark's ``device`` means: none of them for "cpu".

    Args:
        device: "auto" and "cuda" mean all GPUs, "cuda:1" means the second one.
        visible: entries of the GPUs that there are.

    Raises:
        SpecError: there is no such GPU.
    """
    if device == "cpu":
        return ()
    _, _, number = device.partition(":")
    if device != "auto" and int(number or 0) >= len(visible):
        at_most = f", the last of which is cuda:{len(visible) - 1}" if visible else ""
        raise SpecError(
            f"device: {device} was asked for, but torch finds {len(visible)} GPUs here{at_most}; set device: auto, "
            "or install a torch built for your GPU"
        )
    return (visible[int(number)],) if number else tuple(visible)


def _listing() -> str:
    """Return what ``nvidia-smi -L`` prints; nothing where it cannot be run."""
    try:
        ended = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout
