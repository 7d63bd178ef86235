"""Installed packages, as pip would leave them: those of the tests, and others made on the spot; scripts of ``ci/``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

INSTALLED = Path(__file__).parent / "installed"
"""Directory of installed packages: third parties' parts, and modules of tiny networks."""


def install(folder: Path, package: str, entry_points: str, **modules: str) -> None:
    """Write a package's modules into ``folder``, and its metadata with the entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def python_path(*folders: Path) -> str:
    """Return a ``PYTHONPATH`` of these directories and of what was there before."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))


def script(name: str) -> ModuleType:
    """Import ``ci/NAME.py``."""
    path = Path(__file__).parents[2] / "ci" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
