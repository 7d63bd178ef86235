"""The ledger of a benchmark: one SQLite row for each finished cell, so that nothing computed is ever lost.

A cell is found again by its key alone, so a rerun, a larger grid or another executor computes only what is missing.
Adversarial images are kept beside the ledger, one safetensors file for each cell, written before the cell's row.
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
    """Outcomes by the key of their cell. Safe against being killed at any moment; one writer at a time.

    Args:
        folder: directory of the ledger, ``runs/<benchmark>``; created if it is missing.

    Raises:
        LedgerError: the directory cannot be written, or the ledger has another schema.
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
        """Store ``outcome`` for good, its adversarial images first.

        Raises:
            LedgerError: it cannot be written.
        """
        try:
            if outcome.adversaries is not None:
                self._write_images(outcome)
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
        """Return the outcome of the cell ``key``, without its images; None if it has not been computed.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        query = "SELECT outcome, seconds, flags, provenance FROM cells WHERE key = ?"
        try:
            row = self._connection.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise LedgerError(
                f"{self.path}: cannot be read: {error}; wait for any other run of this benchmark, or move a damaged "
                "ledger away"
            ) from error
        if row is None:
            return None
        values, seconds, flags, provenance = row
        return Outcome(key, np.frombuffer(values, "<f4"), seconds, tuple(json.loads(flags)), json.loads(provenance))

    def adversaries(self, key: str) -> Path:
        """Return the file with the adversarial images of the cell ``key``; see `read_adversaries`.

        Raises:
            LedgerError: the file is missing.
        """
        path = self._image_file(key)
        if not path.exists():
            raise LedgerError(
                f"{path}: missing, but the ledger has the outcome that it belongs to; put the directory back, or move "
                f"{self.path} away to compute the benchmark again"
            )
        return path

    def _image_file(self, key: str) -> Path:
        return self.images / key[:2] / f"{key}.safetensors"

    def _write_images(self, outcome: Outcome) -> None:
        import torch
        from safetensors.torch import save_file

        assert outcome.adversaries is not None
        adversaries = outcome.adversaries
        path = self._image_file(outcome.key)
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(".part")
        save_file({"images": adversaries.images.contiguous(), "indices": torch.tensor(adversaries.indices)}, draft)
        os.replace(draft, path)


def read_adversaries(path: Path) -> Adversaries:
    """Read the adversarial images of a cell from a safetensors file with the tensors ``images`` and ``indices``."""
    from safetensors.torch import load_file

    found = load_file(path)
    return Adversaries(found["images"], tuple(found["indices"].tolist()))
