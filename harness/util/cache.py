"""Cache of slowly computed arrays, under a hash of all that they depend on; one process computes each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from harness.errors import FileError, ModelError
from harness.util.files import write_whole

CachedArrays = Mapping[str, np.ndarray]
"""Arrays by name."""


def cached(directory: Path, key: str, compute: Callable[[], CachedArrays]) -> CachedArrays:
    """Return the arrays cached under ``key``, computing them if necessary; other processes wait meanwhile.

    Args:
        directory: directory of the cache, created if missing.
        key: hash of all that the arrays depend on.
        compute: computes the arrays if they are not cached.

    Raises:
        ModelError: the cache cannot be written.
    """
    path = directory / key[:2] / f"{key}.npz"
    with _locked(path):
        arrays = _read(path)
        if arrays is None:
            arrays = compute()
            try:
                write_whole(path, _to_npz(arrays))
            except FileError as error:  # a full disk, say: the model's failure, not the run's
                raise ModelError(f"cache: {error}") from error
        return arrays


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` within the block, against all other processes.

    Raises:
        ModelError: the cache cannot be written.
    """
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError) as error:  # some shared file systems have no locks
        raise ModelError(f"cache: {path} cannot be written ({error}); name another directory") from error
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> CachedArrays | None:
    """Read the cached arrays; None if there are none, or the file is damaged."""
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (OSError, EOFError, ValueError, BadZipFile):
        return None


def _to_npz(arrays: CachedArrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()
