"""Atomic writing of files."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import LeaderboardError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file atomically; its directory is created if missing.

    Args:
        path: path of the file.
        content: bytes, or text to be encoded as UTF-8.

    Raises:
        LeaderboardError: the file cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError as error:
        raise LeaderboardError(f"{path}: cannot be written: {error}; choose another path") from error
