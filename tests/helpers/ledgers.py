"""What a ledger holds, also while a run is writing it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from harness.engine.ledger import Ledger, Stored

Key = tuple[str, str, str]
"""A trial: its context, its image's digest and its attempt; the first and the last as canonical JSON."""


def trials(folder: Path) -> dict[Key, Stored]:
    """Read every result of a ledger that no run is using.

    Args:
        folder: directory of the ledger, ``runs/<benchmark>``.
    """
    with _reading(folder) as connection:
        contexts = [content for (content,) in connection.execute("SELECT content FROM contexts")]
    with Ledger(folder) as ledger:
        return {
            (context, digest, attempt): stored
            for context in contexts
            for (digest, attempt), stored in ledger.read(json.loads(context)).items()
        }


def counted(folder: Path) -> int:
    """Return how many results are committed, while another process may be writing; 0 if there is no ledger yet."""
    if not (folder / "ledger.sqlite").exists():
        return 0
    with _reading(folder) as connection:
        try:
            return int(connection.execute("SELECT ifnull(sum(size), 0) FROM packs").fetchone()[0])
        except sqlite3.OperationalError:  # not made yet
            return 0


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)) as connection:
        yield connection
