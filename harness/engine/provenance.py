"""Provenance of a number: the versions, the device and the code that it was computed with."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "pyautoattack", "robustbench", "numpy")


@cache
def code_sha256() -> str:
    """Return the SHA-256 of the harness's source and of the versions of Python and all packages: what a night tests."""
    installed = sorted(f"{package.name}=={package.version}" for package in distributions())
    digest = hashlib.sha256(json.dumps([platform.python_version(), *installed]).encode())
    home = Path(__file__).parents[1]  # the whole package, not the directory of this file
    for source in sorted(home.rglob("*.py")):
        digest.update(source.relative_to(home).as_posix().encode() + source.read_bytes())
    return digest.hexdigest()


def git_commit(folder: Path) -> str:
    """Return the commit of a folder's repository, with ``+`` where files differ from it; empty outside of one."""
    try:
        said = [
            subprocess.run(["git", *what], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for what in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].strip() + ("+" if said[1].strip() else "")


@cache
def provenance(device: str) -> dict[str, str]:
    """Return the versions of the harness and of the packages that compute, and the device with its name."""
    import torch

    name = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return {
        "ct_harness": version("ct-harness"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "device": device.split(":", maxsplit=1)[0],
        "device_name": name,
    }
