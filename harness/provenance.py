"""What a number was computed with."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import version

PACKAGES = ("torch", "torchvision", "pyautoattack", "robustbench", "numpy")


@cache
def provenance(device: str) -> dict[str, str]:
    """Versions of the harness and of what it stands on, and the device by name."""
    import torch

    from harness import __version__

    name = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return {
        "ct_harness": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": device.split(":", maxsplit=1)[0],
        "device_name": name,
    }
