"""``models.lock``: the size and SHA-256 of every downloaded file, recorded once and checked from then on."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError

LOCK = "models.lock"
ON_PURPOSE = f"to take it on purpose, delete the entry in {LOCK}"
"""Remedy for a file that has changed on purpose."""


class Fingerprint(NamedTuple):
    """The entry of a file in ``models.lock``.

    Args:
        size: size in bytes.
        sha256: SHA-256 of the content, in hexadecimal.
    """

    size: int
    sha256: str

    def __str__(self) -> str:
        return f"SHA-256 {self.sha256[:16]}…, {self.size:,} bytes"


def fingerprint(path: Path) -> Fingerprint:
    """Compute the size and SHA-256 of a file."""
    with path.open("rb") as file:
        return Fingerprint(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def differs(url: str, path: Path) -> str | None:
    """Compare a file with its entry in ``models.lock``, which is made if missing.

    Args:
        url: address of the file, which names the entry.
        path: path of the file.

    Returns:
        The difference as a predicate, for a message; None if there is none.

    Raises:
        HarnessError: ``models.lock`` cannot be parsed.
    """
    found = fingerprint(path)
    expected = _read().get(url) or _record(url, found)
    if found == expected:
        return None
    return f"is not what {Path(LOCK).absolute()} recorded for {url}: expected {expected}, found {found}"


def _record(url: str, found: Fingerprint) -> Fingerprint:
    """Record ``found`` in ``models.lock`` and return the entry, which another process may have made first."""
    try:
        with _locked(Path(LOCK)):
            entries = {url: found} | _read()
            text = {key: entry._asdict() for key, entry in sorted(entries.items())}
            new = Path(f".{LOCK}.new")
            new.write_text(json.dumps(text, indent=2) + "\n")
            new.replace(LOCK)
            return entries[url]
    except OSError as error:
        warnings.warn(f"{Path(LOCK).absolute()} cannot be written ({error}); {url} is not recorded", stacklevel=2)
        return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of ``path`` within the block, so that no other process replaces it; it is created if missing."""
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # otherwise it was replaced during the wait
                yield
                return


def _read() -> dict[str, Fingerprint]:
    path = Path(LOCK)
    text = path.read_text() if path.exists() else ""
    try:
        return {url: Fingerprint(**entry) for url, entry in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "fix it, or delete it to record every file afresh"
        raise HarnessError(f"{path.absolute()}: not a {LOCK} ({error}); {remedy}") from error
