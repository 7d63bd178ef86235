#!/usr/bin/env python3
"""Make the folder that ``ci/gpu.py --bundle`` takes to a machine that has torch but no network and no pip.

It holds the packages that the harness needs besides torch, torchvision, timm, scikit-learn, pandas and scipy, at the
versions that are installed here; the harness's own metadata, by which its parts are found; the weights of a CIFAR-10
network, in half precision; and CIFAR-10 test images, from a file of yours.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gpu import GOOD, IMAGES, UNDONE, Undone

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "annotated-types",
    "cloudpickle",
    "pyautoattack",
    "pydantic",
    "pydantic-core",
    "pyyaml",
    "robustbench",
    "safetensors",
    "tqdm",
    "typing-extensions",
    "typing-inspection",
)
"""What the sections import besides what the machine has; of RobustBench, provenance asks for the version alone."""
WEIGHTS = "pyautoattack/examples/model_test.pt"
"""File that is half of the bundle, and is kept in half precision."""
UNUSED = ("pyautoattack/examples/tf_model.weight.h5", "bin")
"""Files of the packages that nothing reads."""
COUNT = 1000
"""Images that are taken, from the first on."""
LARGEST = 55_000_000
"""Bytes that the bundle may have."""


def options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_bundle"), help="folder to make (gpu_bundle)")
    parser.add_argument("--images", type=Path, required=True, help="CIFAR-10 test images, an .npz with x and y")
    parser.add_argument("--python", default="3.12", help="version of Python on that machine (3.12)")
    return parser.parse_args()


def main() -> int:
    """Make the bundle and print its size; return the exit code of ``ci/gpu.py``."""
    asked = options()
    try:
        make(asked.out, asked.images, asked.python)
        print(f"{asked.out}: {checked_size(asked.out) / 1e6:.1f} MB, for Python {asked.python}")
    except Undone as error:
        print(f"error: {error}", file=sys.stderr)
        return UNDONE
    return GOOD


def make(out: Path, pictures: Path, python: str) -> None:
    """Make the bundle.

    Raises:
        Undone: there are no images, or the folder is in use.
    """
    if not pictures.is_file():
        raise Undone(f"--images: no file {pictures}")
    if out.exists() and any(out.iterdir()):
        raise Undone(f"--out: {out} is not empty; remove it first")
    packages(out, python)
    own_metadata(out)
    in_half_precision(out / WEIGHTS)
    images(pictures, out / IMAGES)


def checked_size(folder: Path) -> int:
    """Return the bytes of a bundle.

    Raises:
        Undone: they are more than `LARGEST`.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    total = sum(path.stat().st_size for path in files)
    if total > LARGEST:
        named = ", ".join(f"{path.relative_to(folder)} {path.stat().st_size / 1e6:.1f} MB" for path in files[:5])
        raise Undone(f"{folder} has {total / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}; the largest files: {named}")
    return total


def packages(out: Path, python: str) -> None:
    """Install the packages, as wheels for that Python on Linux, without what they need in turn."""
    wheels = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_17", "2014", "1")]
    pinned = [f"{name}=={version(name)}" for name in PACKAGES]
    pip("--target", str(out), "--no-compile", *wheels, *platforms, *pinned)
    for name in UNUSED:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def own_metadata(out: Path) -> None:
    """Install the checkout and keep its metadata alone: the code comes from the checkout on that machine."""
    pip("--target", str(out), "--no-compile", str(ROOT))
    shutil.rmtree(out / "harness")
    shutil.rmtree(out / "bin", ignore_errors=True)
    for path in out.glob("ct_harness-*.dist-info/direct_url.json"):  # names a folder of this machine
        path.unlink()


def pip(*arguments: str) -> None:
    """Run ``pip install`` without dependencies."""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", *arguments], check=True)


def in_half_precision(file: Path) -> None:
    """Store a state dict's float32 tensors as float16."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    torch.save({name: one.half() if one.dtype == torch.float32 else one for name, one in state.items()}, file)


def images(source: Path, target: Path) -> None:
    """Copy the first images, and their labels."""
    with np.load(source) as file:
        np.savez_compressed(target, x=file["x"][:COUNT], y=file["y"][:COUNT])


if __name__ == "__main__":
    sys.exit(main())
