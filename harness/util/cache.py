"""What takes long to compute and is named by a hash of all that it follows from: computed once, by one process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from harness.errors import ModelError
from harness.util.files import write_whole

CachedArrays = Mapping[str, np.ndarray]


def cached(folder: Path, key: str, compute: Callable[[], CachedArrays]) -> CachedArrays:
    """The arrays kept under ``key``; others who ask meanwhile wait for the one that computes them.

    Args:
        folder: made where it is missing.
        key: a hash.
        compute: called where nothing is kept.

    Raises:
        ModelError: the folder cannot be written.
    """
    path = folder / key[:2] / f"{key}.npz"
    with _alone(path):
        found = _kept(path)
        if found is None:
            found = compute()
            write_whole(path, _packed(found))
        return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process is at ``path`` meanwhile.

    Raises:
        ModelError: its folder cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # some shared folders know no locks
        raise ModelError(f"cache: {path} cannot be written ({error}); name another folder") from error
    try:
        yield
    finally:
        lock.release()


def _kept(path: Path) -> CachedArrays | None:
    """What is kept there; None where nothing is, or nothing whole."""
    try:
        with np.load(path) as kept:
            return dict(kept)
    except (OSError, EOFError, ValueError, BadZipFile):
        return None


def _packed(arrays: CachedArrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
