"""The database of a ledger: its tables and their checksums, how it is opened, and what its errors mean.

    contexts, images, attempts, blocks    texts, each kept once and numbered from 0
    packs                                 the results that were appended together; see `harness.engine.packing`

Every row has a checksum. That of a pack covers its bytes and every text that they refer to, so results that are edited,
moved to another identity or mixed with another ledger's are noticed when they are read.
"""

from __future__ import annotations

import errno
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.errors import LedgerError

SCHEMA = 3
PATIENCE = 5.0
"""Seconds to wait for another run to let go of the ledger."""

TABLES = ("contexts", "images", "attempts", "blocks")
CREATE = (
    # Task.identity(steering), canonical JSON
    "CREATE TABLE contexts (id INTEGER PRIMARY KEY, content TEXT NOT NULL, checksum BLOB NOT NULL)",
    # SHA-256, hexadecimal
    "CREATE TABLE images   (id INTEGER PRIMARY KEY, content TEXT NOT NULL, checksum BLOB NOT NULL)",
    # Task.attempt_identity, canonical JSON
    "CREATE TABLE attempts (id INTEGER PRIMARY KEY, content TEXT NOT NULL, checksum BLOB NOT NULL)",
    # flags and provenance, canonical JSON
    "CREATE TABLE blocks   (id INTEGER PRIMARY KEY, content TEXT NOT NULL, checksum BLOB NOT NULL)",
    """CREATE TABLE packs (
        id       INTEGER PRIMARY KEY,
        context  INTEGER NOT NULL,
        block    INTEGER NOT NULL,
        size     INTEGER NOT NULL,  -- number of results
        tail     INTEGER NOT NULL,  -- bytes in the file of adversarial images when it was written
        results  BLOB NOT NULL,
        checksum BLOB NOT NULL
    )""",
    "CREATE INDEX packs_of_context ON packs (context)",
)

DAMAGE = (zlib.error, ValueError, TypeError, LookupError, OverflowError, MemoryError)
"""What reading a damaged pack may raise."""


def checksum(*parts: bytes) -> bytes:
    """Return 8 bytes that are others if any part is, but for a chance of 2⁻⁶⁴."""
    found = blake2b(digest_size=8)
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()


class NumberedTexts:
    """The numbered texts of a table, all in memory.

    Args:
        connection: the database.
        table: one of `TABLES`.

    Raises:
        ValueError: a text is damaged or missing.
        sqlite3.Error: the table cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection, self.table = connection, table
        self.texts: list[str] = []
        self.checksums: list[bytes] = []
        self._numbers: dict[str, int] = {}
        for number, content, stored in connection.execute(f"SELECT id, content, checksum FROM {table} ORDER BY id"):
            if number != len(self.texts) or stored != checksum_of_text(table, number, content):
                raise ValueError(f"row {len(self.texts)} of the table {table} is not as it was written")
            self._keep(content.decode(), stored)

    def find(self, text: str) -> int | None:
        """Return the number of a text; None if it has none yet."""
        return self._numbers.get(text)

    def number(self, text: str) -> int:
        """Return the number of a text, which gets the next one if it is new."""
        number = self._numbers.get(text)
        if number is None:
            number = len(self.texts)
            own = checksum_of_text(self.table, number, text.encode())
            self._connection.execute(f"INSERT INTO {self.table} VALUES (?, ?, ?)", (number, text, own))
            self._keep(text, own)
        return number

    def _keep(self, text: str, own: bytes) -> None:
        self._numbers[text] = len(self.texts)
        self.texts.append(text)
        self.checksums.append(own)


def checksum_of_text(table: str, number: int, content: bytes) -> bytes:
    """Return the checksum of a row of texts."""
    return checksum(f"{table} {number}".encode(), content)


class Texts(NamedTuple):
    """All texts of a ledger."""

    contexts: NumberedTexts
    images: NumberedTexts
    attempts: NumberedTexts
    blocks: NumberedTexts


def texts_of(connection: sqlite3.Connection) -> Texts:
    """Read all texts; see `NumberedTexts`."""
    return Texts(*(NumberedTexts(connection, table) for table in TABLES))


class PackRow(NamedTuple):
    """A row of the table ``packs``; `CREATE` says what its columns are."""

    context: int
    block: int
    size: int
    tail: int
    results: bytes

    def checksum(self, texts: Texts, records: np.ndarray) -> bytes:
        """Return the checksum of the row, its records being unpacked.

        Raises:
            LookupError: it refers to a text that is not there.
            TypeError: a number of it is none.
        """
        return checksum(
            texts.contexts.checksums[self.context],
            texts.blocks.checksums[self.block],
            b"".join(map(texts.images.checksums.__getitem__, records["image"].tolist())),
            b"".join(map(texts.attempts.checksums.__getitem__, records["attempt"].tolist())),
            int.to_bytes(self.size, 8, "little"),
            int.to_bytes(self.tail, 8, "little"),
            self.results,
        )

    def insert(self, connection: sqlite3.Connection, own: bytes) -> None:
        """Write the row with its checksum."""
        columns = "context, block, size, tail, results, checksum"
        connection.execute(f"INSERT INTO packs ({columns}) VALUES (?, ?, ?, ?, ?, ?)", (*self, own))


def opened(path: Path) -> sqlite3.Connection:
    """Open a ledger's database, made if it is missing, and take its write lock, which readers do not notice.

    Texts are read as bytes, which a damaged one is as well.

    Raises:
        LedgerError: it is no ledger of this schema.
        sqlite3.Error: it cannot be opened or written, or another run holds the lock.
    """
    with ExitStack() as stack:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        stack.callback(connection.close)
        connection.text_factory = bytes
        check_schema(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        if not _schema(connection):
            for statement in (*CREATE, f"PRAGMA user_version = {SCHEMA}", "COMMIT", "BEGIN IMMEDIATE"):
                connection.execute(statement)
        stack.pop_all()
    return connection


def _schema(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is no ledger of this schema, before anything in it is touched.

    Raises:
        LedgerError: it is none.
    """
    found = _schema(connection)
    if found == SCHEMA:
        return
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not (found or tables):
        return
    elsewhere = f"move {path.parent} away or choose another --runs"
    if found == 0:
        message = f"found a database that is no ledger; {elsewhere}"
    elif found == 1:
        message = (
            f"found schema {found}, whose results belong to batches of images and cannot be taken over as results of "
            f"trials; {elsewhere}, and the benchmark is computed again"
        )
    elif found < SCHEMA:
        message = (
            f"found schema {found}, whose results have no checksums, so they cannot be told from damaged ones; "
            f"{elsewhere}, and the benchmark is computed again"
        )
    else:
        message = f"found schema {found}, written by a newer version of ct-harness; update ct-harness, or {elsewhere}"
    raise LedgerError(f"{path}: expected a ledger of schema {SCHEMA}, {message}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system raise within the block into a `LedgerError` that says what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(f"{path}: {_explanation(error, path.parent)}") from error


@contextmanager
def explained_reading(path: Path) -> Iterator[None]:
    """Do what `explained` does, and take whatever else reading raises for damage."""
    try:
        with explained(path):
            yield
    except DAMAGE as error:
        raise LedgerError(f"{path}: {_damaged(error, path.parent)}") from error


BY_THE_SYSTEM = (
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOTADB,
)  # fmt: skip
"""Codes of errors that are no fault within a database of ours."""


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error comes from what is in the database, and not from the system around it."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in BY_THE_SYSTEM


def _explanation(error: OSError | sqlite3.Error, folder: Path) -> str:
    """Return what happened and what to do, for the end of a message."""
    if isinstance(error, sqlite3.Error) and is_damage(error):
        return _damaged(error, folder)
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF  # the rest says more about the same
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "in use by another run; wait until it has finished, or choose another --runs"
    no_room = code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_WRITE  # as beyond a limit of file sizes
    if no_room or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"cannot be written, the disk is full or the file may not grow ({error}); free some space and run again: "
            "what was committed is kept"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return f"not an SQLite database; move {folder} away or choose another --runs"
    return f"cannot be opened, read or written ({error}); check the directory's permissions or choose another --runs"


def _damaged(error: Exception, folder: Path) -> str:
    return f"damaged ({error}); {remedy(folder)}"


def remedy(folder: Path) -> str:
    """Return what to do about a damaged ledger."""
    return (
        "`ct-harness run --repair` drops what is damaged and computes it again; or restore a backup, or move "
        f"{folder} away"
    )


def rows_from_both_ends(connection: sqlite3.Connection, table: str, columns: str) -> Iterable[tuple[Any, ...]]:
    """Return what can be read of a damaged table: the rows before the first fault, and those behind the last one.

    Args:
        connection: the database.
        table: the table.
        columns: its columns that are wanted, beside the first one, ``id``.
    """
    found: dict[Any, tuple[Any, ...]] = {}
    for order in ("ASC", "DESC"):
        try:
            for number, *row in connection.execute(f"SELECT id, {columns} FROM {table} ORDER BY id {order}"):
                found[number] = (number, *row)
        except (sqlite3.Error, MemoryError, OverflowError):
            continue
    return [found[number] for number in sorted(found)]
