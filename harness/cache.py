"""What takes long to compute and is named by a hash of all that it follows from: computed once, by one process."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from harness.errors import ModelError
from harness.files import write_whole

Arrays = Mapping[str, np.ndarray]


def cached(folder: Path, key: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays kept under ``key``; others who ask meanwhile wait for the one that computes them.

    Args:
        folder: made where it is missing.
        key: a hash.
        compute: called where nothing is kept.

    Raises:
        ModelError: the folder cannot be written.
    """
    from filelock import FileLock

    path = folder / key[:2] / f"{key}.npz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write_whole(path, _packed(compute()))
            with np.load(path) as kept:
                return dict(kept)
    except OSError as error:
        raise ModelError(f"cache: {path} cannot be read or written ({error}); name another folder") from error


def _packed(arrays: Arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
