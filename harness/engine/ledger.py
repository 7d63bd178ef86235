"""The ledger of a benchmark: one SQLite row for each finished cell, so that nothing computed is ever lost.

A cell is found again by its key alone, so a rerun, a larger grid or another executor computes only what is missing.
The adversarial images lie beside it, one safetensors file a cell, written before the row that stands for them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from types import TracebackType

import numpy as np

from harness.api.work import Adversaries, Cell, Outcome
from harness.errors import LedgerError
from harness.util.hashing import canonical

SCHEMA = 1

CREATE = """
CREATE TABLE IF NOT EXISTS cells (
    key        TEXT PRIMARY KEY,   -- SHA-256 of the identity
    identity   TEXT NOT NULL,      -- canonical JSON
    outcome    BLOB NOT NULL,      -- float32, little-endian, a number for each image of the shard
    seconds    REAL NOT NULL,
    flags      TEXT NOT NULL,      -- JSON list
    provenance TEXT NOT NULL,      -- JSON object
    finished   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
) WITHOUT ROWID
"""


class Ledger:
    """Append and look up. Safe against being killed at any moment; one writer at a time.

    Args:
        folder: ``runs/<benchmark>``; made where it is missing.

    Raises:
        LedgerError: the folder cannot be written, or the ledger has another schema.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.sqlite"
        self.images = folder / "adversaries"
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=30)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._check_schema()
            self._connection.execute(CREATE)
            self._connection.commit()
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: cannot be opened or written: {error}; choose another --runs") from error

    def _check_schema(self) -> None:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if found != SCHEMA and tables:
            raise LedgerError(f"{self.path}: expected a ledger of schema {SCHEMA}, found {found}; move it away")
        self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def append(self, cell: Cell, outcome: Outcome) -> None:
        """Keep ``outcome`` for good; its adversarial images first."""
        try:
            if outcome.adversaries is not None:
                self._keep_images(outcome)
            self._connection.execute(
                "INSERT OR REPLACE INTO cells (key, identity, outcome, seconds, flags, provenance)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    outcome.key,
                    canonical(cell.identity()),
                    outcome.values.astype("<f4").tobytes(),
                    outcome.seconds,
                    canonical(list(outcome.flags)),
                    canonical(dict(outcome.provenance)),
                ),
            )
            self._connection.commit()
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: cannot be written: {error}; free some space and run again") from error

    def get(self, key: str) -> Outcome | None:
        """The outcome of the cell ``key``, without its images; None if it has not been computed."""
        query = "SELECT outcome, seconds, flags, provenance FROM cells WHERE key = ?"
        try:
            row = self._connection.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path}: cannot be read: {error}; is another run using it, or is it damaged?"
            ) from error
        if row is None:
            return None
        values, seconds, flags, provenance = row
        return Outcome(key, np.frombuffer(values, "<f4"), seconds, tuple(json.loads(flags)), json.loads(provenance))

    def adversaries(self, key: str) -> Path:
        """The safetensors file with the adversarial ``images`` and their ``indices`` of a cell that lost some.

        Raises:
            LedgerError: it is not there.
        """
        path = self._images_of(key)
        if not path.exists():
            raise LedgerError(
                f"{path}: missing, but the ledger has the outcome that it belongs to; put the folder back, or move "
                f"{self.path} away to compute the benchmark again"
            )
        return path

    def _images_of(self, key: str) -> Path:
        return self.images / key[:2] / f"{key}.safetensors"

    def _keep_images(self, outcome: Outcome) -> None:
        import torch
        from safetensors.torch import save_file

        assert outcome.adversaries is not None
        found = outcome.adversaries
        path = self._images_of(outcome.key)
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".part")
        save_file({"images": found.images.contiguous(), "indices": torch.tensor(found.indices)}, draft)
        os.replace(draft, path)


def read_adversaries(path: Path) -> Adversaries:
    """What `Ledger.adversaries` points to."""
    from safetensors.torch import load_file

    found = load_file(path)
    return Adversaries(found["images"], tuple(found["indices"].tolist()))
