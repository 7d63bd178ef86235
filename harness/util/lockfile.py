"""``models.lock``: size and SHA-256 of every downloaded file, recorded once and checked ever after."""

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


class Fingerprint(NamedTuple):
    """What ``models.lock`` knows of a file."""

    size: int
    sha256: str

    def __str__(self) -> str:
        return f"SHA-256 {self.sha256[:16]}…, {self.size:,} bytes"


def fingerprint(path: Path) -> Fingerprint:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return Fingerprint(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def differs(url: str, path: Path) -> str | None:
    """How ``path`` differs from what ``models.lock`` says of ``url``; None where it does not, or is now recorded.

    Raises:
        HarnessError: ``models.lock`` cannot be understood.
    """
    found = fingerprint(path)
    expected = _read().get(url) or _record(url, found)
    if found == expected:
        return None
    return f"is not what {Path(LOCK).absolute()} recorded for {url}: expected {expected}, found {found}"


def _record(url: str, found: Fingerprint) -> Fingerprint:
    """Write ``found`` into ``models.lock``; if another process has been quicker, what that has written is returned."""
    try:
        with _alone(Path(LOCK)):
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
def _alone(path: Path) -> Iterator[None]:
    """Nobody else replaces ``path`` meanwhile; makes it if need be."""
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else it was replaced while we waited
                yield
                return


def _read() -> dict[str, Fingerprint]:
    path = Path(LOCK)
    text = path.read_text() if path.exists() else ""
    try:
        return {url: Fingerprint(**entry) for url, entry in json.loads(text or "{}").items()}
    except (ValueError, TypeError, AttributeError) as error:
        remedy = "mend it, or delete it to record every file afresh"
        raise HarnessError(f"{path.absolute()}: not a {LOCK} ({error}); {remedy}") from error
