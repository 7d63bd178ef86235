"""The ledger of a benchmark: the result of every trial in one SQLite file, so that nothing computed is ever lost.

A result is found again by what it depends on alone: the identity of its task and steering (its context), its image's
digest and its attempt. So a rerun, a larger grid, more images or another executor compute only what is missing.

    contexts, images, attempts, blocks    texts, each kept once and numbered from 0
    packs                                 the results that were appended together; see `harness.engine.packing`
    adversaries.f32                       adversarial images, beside the database; see `harness.engine.adversarial_file`

An adversarial image is written before the transaction that refers to it is committed, so a kill at any moment loses the
results that were not committed and nothing else. A power failure loses no more: the images are forced to the disk
before the commit, and the commit itself as well (``synchronous = FULL``; ``NORMAL`` would survive a kill alone). That
costs milliseconds a commit, and there is about one a second.
"""

from __future__ import annotations

import errno
import json
import math
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from harness.api.trial import Answer, Cost, Result
from harness.engine.adversarial_file import AdversarialFile
from harness.engine.packing import RECORD, pack, unpack
from harness.errors import LedgerError
from harness.util.hashing import canonical

SCHEMA = 2
PATIENCE = 5.0
"""Seconds to wait for another run to let go of the ledger."""

CREATE = (
    "CREATE TABLE contexts (id INTEGER PRIMARY KEY, content TEXT NOT NULL)",  # Task.identity(steering), canonical JSON
    "CREATE TABLE images   (id INTEGER PRIMARY KEY, content TEXT NOT NULL)",  # SHA-256, hexadecimal
    "CREATE TABLE attempts (id INTEGER PRIMARY KEY, content TEXT NOT NULL)",  # Task.attempt_identity, canonical JSON
    "CREATE TABLE blocks   (id INTEGER PRIMARY KEY, content TEXT NOT NULL)",  # flags and provenance, canonical JSON
    """CREATE TABLE packs (
        id      INTEGER PRIMARY KEY,
        context INTEGER NOT NULL,
        block   INTEGER NOT NULL,
        size    INTEGER NOT NULL,  -- number of results
        tail    INTEGER NOT NULL,  -- bytes in the file of adversarial images when it was written
        results BLOB NOT NULL
    )""",
    "CREATE INDEX packs_of_context ON packs (context)",
)


class Stored(NamedTuple):
    """A result as the ledger holds it; its numbers are rounded to float32.

    Args:
        answer: what the trial has shown.
        cost: its price.
        block: number of its `Block`.
        offset: place of its adversarial image; −1 if it has none.
    """

    answer: Answer
    cost: Cost
    block: int
    offset: int


class Block(NamedTuple):
    """Circumstances under which results were computed.

    Args:
        flags: names of the `harness.api.threat.Flag` warnings that were raised meanwhile.
        provenance: versions and device that they were computed with.
    """

    flags: tuple[str, ...]
    provenance: Mapping[str, str]


class Ledger:
    """Results by what they depend on. Safe against being killed at any moment; one run at a time.

    Other processes may read the database meanwhile. Leaving the block commits, unless the ledger itself has failed:
    after a `LedgerError` it is of no more use.

    Args:
        folder: directory of the ledger, ``runs/<benchmark>``; created if it is missing.

    Raises:
        LedgerError: the directory cannot be written, another run uses the ledger, it has another schema or is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.sqlite"
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as stack:
                self._connection = stack.enter_context(closing(_opened(self.path)))
                self._file = stack.enter_context(closing(AdversarialFile(folder / "adversaries.f32")))
                self._check_images()
                self._contexts, self._images, self._attempts, self._blocks = (
                    _Texts(self._connection, table) for table in ("contexts", "images", "attempts", "blocks")
                )
                self._stack = stack.pop_all()
        self._known: dict[int, set[int]] = {}  # by context: the keys of its trials

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if not isinstance(error, LedgerError):
                self.commit()

    def read(self, identity: Mapping[str, Any]) -> dict[tuple[str, str], Stored]:
        """Return the results of one context by the image's digest and the attempt's canonical identity.

        Args:
            identity: identity of the task under one steering (`Task.identity`).

        Raises:
            LedgerError: the ledger cannot be read.
        """
        context = self._contexts.find(canonical(identity))
        if context is None:
            return {}
        blocks, records, rankings = self._packs(context)
        digests = map(self._images.texts.__getitem__, records["image"].tolist())
        attempts = map(self._attempts.texts.__getitem__, records["attempt"].tolist())
        return dict(zip(zip(digests, attempts, strict=True), _stored(blocks, records, rankings), strict=True))

    def contexts(self) -> list[dict[str, Any]]:
        """Return the identities under which there are results, in the order of their first result."""
        return [json.loads(text) for text in self._contexts.texts]

    def block(self, number: int) -> Block:
        """Return the circumstances of results by their `Stored.block`."""
        content = json.loads(self._blocks.texts[number])
        return Block(tuple(content["flags"]), content["provenance"])

    def append(
        self,
        identity: Mapping[str, Any],
        entries: Sequence[tuple[str, str, Result]],
        flags: Iterable[str],
        provenance: Mapping[str, str],
    ) -> list[Stored]:
        """Store results of one context within the open transaction, their adversarial images first.

        A trial that is already there stays as it is: of equal trials the first counts.

        Args:
            identity: identity of the task under one steering (`Task.identity`).
            entries: for each result its image's digest, its attempt's canonical identity, and the result.
            flags: flags that were raised meanwhile.
            provenance: versions and device that they were computed with.

        Returns:
            The results as `read` will return them, in the order of ``entries``.

        Raises:
            LedgerError: they cannot be written.
        """
        with self._explained():
            context = self._contexts.number(canonical(identity))
            block = self._blocks.number(canonical({"flags": list(flags), "provenance": dict(provenance)}))
            keys = [_key(self._images.number(digest), self._attempts.number(attempt)) for digest, attempt, _ in entries]
            new = self._unknown(context, zip(keys, [result for _, _, result in entries], strict=True))
            stored = self._insert(context, block, new)
        if len(stored) == len(keys):
            return [stored[key] for key in keys]
        there = self.read(identity)
        return [there[digest, attempt] for digest, attempt, _ in entries]

    def commit(self) -> None:
        """Make everything appended so far permanent.

        Raises:
            LedgerError: it cannot be written.
        """
        with self._explained():
            self._file.sync()
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")

    def adversarial(self, stored: Stored, shape: tuple[int, ...]) -> np.ndarray:
        """Return the adversarial image of a result, float32 [c, h, w].

        Args:
            stored: a result that has one.
            shape: c, h, w.

        Raises:
            LedgerError: it cannot be read.
        """
        assert stored.offset >= 0, "a result without an adversarial image"
        with self._explained():
            image = self._file.read(stored.offset, shape)
        if image is None:
            raise self._short(stored.offset + 4 * math.prod(shape))
        return image

    def _packs(self, context: int) -> tuple[list[int], np.ndarray, list[tuple[int, ...]]]:
        """Return the block, the record and the ranking of every result of a context."""
        query = "SELECT block, size, results FROM packs WHERE context = ? ORDER BY id"
        with self._explained():
            rows = self._connection.execute(query, (context,)).fetchall()
            records, rankings = unpack((size, results) for _, size, results in rows)
        return [block for block, size, _ in rows for _ in range(size)], records, rankings

    def _unknown(self, context: int, results: Iterable[tuple[int, Result]]) -> dict[int, Result]:
        """Return the results that the ledger does not hold, and take note that from now on it does."""
        if context not in self._known:
            _, records, _ = self._packs(context)
            self._known[context] = set(_key(records["image"].astype(np.int64), records["attempt"]).tolist())
        known, new = self._known[context], {}
        for key, result in results:
            if key not in known:
                known.add(key)
                new[key] = result
        return new

    def _insert(self, context: int, block: int, results: Mapping[int, Result]) -> dict[int, Stored]:
        """Write a pack, after its adversarial images."""
        if not results:
            return {}
        adversarial = {key: one.adversarial.numpy() for key, one in results.items() if one.adversarial is not None}
        offsets = dict(zip(adversarial, self._file.append([*adversarial.values()]), strict=True))
        records = np.array([_record(key, one, offsets.get(key, -1)) for key, one in results.items()], RECORD)
        rankings = [one.answer.ranking for one in results.values()]
        self._connection.execute(
            "INSERT INTO packs (context, block, size, tail, results) VALUES (?, ?, ?, ?, ?)",
            (context, block, len(records), self._file.size, pack(records, rankings)),
        )
        return dict(zip(results, _stored([block] * len(records), records, rankings), strict=True))

    def _check_images(self) -> None:
        last = self._connection.execute("SELECT tail FROM packs ORDER BY id DESC LIMIT 1").fetchone()
        if last and self._file.size < last[0]:
            raise self._short(last[0])

    def _short(self, expected: int) -> LedgerError:
        return LedgerError(
            f"{self._file.path}: expected at least {expected:,} bytes of adversarial images, found "
            f"{self._file.size:,}; put the file back, or move {self.path.parent} away to compute the benchmark again"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what SQLite and the operating system raise into a `LedgerError` that says what to do."""
        try:
            yield
        except (OSError, sqlite3.Error, zlib.error, ValueError) as error:
            raise LedgerError(f"{self.path}: {_explanation(error, self.path.parent)}") from error


class _Texts:
    """The numbered texts of a table, all in memory."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self._connection = connection
        self._table = table
        self.texts: list[str] = [text for (text,) in connection.execute(f"SELECT content FROM {table} ORDER BY id")]
        self._numbers = {text: number for number, text in enumerate(self.texts)}

    def find(self, text: str) -> int | None:
        """Return the number of a text; None if it has none yet."""
        return self._numbers.get(text)

    def number(self, text: str) -> int:
        """Return the number of a text, which gets the next one if it is new."""
        number = self._numbers.get(text)
        if number is None:
            number = len(self.texts)
            self._connection.execute(f"INSERT INTO {self._table} VALUES (?, ?)", (number, text))
            self._numbers[text] = number
            self.texts.append(text)
        return number


def _key(image: Any, attempt: Any) -> Any:
    """Return one number for an image and an attempt, or an array of them for arrays."""
    return image << 32 | attempt


def _record(key: int, result: Result, offset: int) -> tuple[float, ...]:
    """Return the `RECORD` of a result."""
    answer, cost = result.answer, result.cost
    return (
        *divmod(key, 1 << 32), answer.value + 0.0, answer.margin,  # no negative zero
        len(answer.ranking),
        cost.forwards, cost.backwards, cost.seconds, offset,
    )  # fmt: skip


def _stored(blocks: Sequence[int], records: np.ndarray, rankings: Sequence[tuple[int, ...]]) -> Iterator[Stored]:
    """Yield results as a caller sees them. Equal answers of attacks are one object: there are millions."""
    values, margins = records["value"].tolist(), records["margin"].tolist()
    plain = {value: Answer(value) for value in set(values)}
    answers = [*map(plain.__getitem__, values)]
    for i in np.flatnonzero(~np.isnan(records["margin"]) | (records["ranks"] > 0)).tolist():
        answers[i] = Answer(values[i], math.nan if math.isnan(margins[i]) else margins[i], rankings[i])
    costs = map(Cost, *(records[column].tolist() for column in ("forwards", "backwards", "seconds")))
    return map(Stored, answers, costs, blocks, records["offset"].tolist())


def _opened(path: Path) -> sqlite3.Connection:
    """Open a ledger's database, made if it is missing, and take its write lock, which readers do not notice.

    Raises:
        LedgerError: it is no ledger of this schema.
        sqlite3.Error: it cannot be opened or written, or another run holds the lock.
    """
    with ExitStack() as stack:
        connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        stack.callback(connection.close)
        _check_schema(connection, path)
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


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a database that is no ledger of this schema, before anything in it is touched."""
    found = _schema(connection)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if found == SCHEMA or not (found or tables):
        return
    elsewhere = f"move {path.parent} away or choose another --runs"
    if found == 0:
        message = f"found a database that is no ledger; {elsewhere}"
    elif found < SCHEMA:
        message = (
            f"found schema {found}, whose results belong to batches of images and cannot be taken over as results of "
            f"trials; {elsewhere}, and the benchmark is computed again"
        )
    else:
        message = f"found schema {found}, written by a newer version of ct-harness; update ct-harness, or {elsewhere}"
    raise LedgerError(f"{path}: expected a ledger of schema {SCHEMA}, {message}")


def _explanation(error: Exception, folder: Path) -> str:
    """Return what happened and what to do, for the end of a message."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more about the same
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "in use by another run; wait until it has finished, or choose another --runs"
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"cannot be written, the disk is full ({error}); free some space and run again: what was committed is kept"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return f"not an SQLite database; move {folder} away or choose another --runs"
    if code == sqlite3.SQLITE_CORRUPT or isinstance(error, (zlib.error, ValueError)):
        return f"damaged ({error}); restore a backup, or move {folder} away to compute the benchmark again"
    return f"cannot be opened, read or written ({error}); check the directory's permissions or choose another --runs"
