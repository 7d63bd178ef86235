"""A file is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from harness.errors import LeaderboardError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; the folder is made where it is missing, and text is UTF-8.

    Raises:
        LeaderboardError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(draft, path)
    except OSError as error:
        raise LeaderboardError(f"{path}: cannot be written: {error}; choose another place") from error
