"""Repair of a ledger: what is sound of it is kept, so that a run computes only what was damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.engine import ledger_database
from harness.engine.adversarial_file import AdversarialFile, ImageAt
from harness.engine.ledger_database import (
    CREATE,
    DAMAGE,
    SCHEMA,
    TABLES,
    PackRow,
    Texts,
    check_schema,
    checksum_of_text,
    explained,
    rows_from_both_ends,
    texts_of,
)
from harness.engine.packing import pack, unpack
from harness.util.hashing import canonical


class Kept(NamedTuple):
    """Outcome of a repair.

    Args:
        results: number of results.
        dropped: number of results that were dropped, as far as they could be counted.
    """

    results: int
    dropped: int


def repair(folder: Path) -> Kept:
    """Make a ledger of what is sound of one, in its place.

    A result is kept where its checksum holds and, if it has an adversarial image, that of the image does as well. A
    kill at any moment leaves the damaged ledger or the repaired one.

    Args:
        folder: directory of the ledger, ``runs/<benchmark>``.

    Raises:
        LedgerError: it has another schema, another run uses it, or it cannot be written.
    """
    path = folder / "ledger.sqlite"
    if not path.exists():
        return Kept(0, 0)
    draft = path.with_name("ledger.repaired")
    draft.unlink(missing_ok=True)
    _fill_up(path)
    with explained(path):
        with closing(_locked(path)) as damaged, closing(sqlite3.connect(draft, isolation_level=None)) as sound:
            kept = _copy(damaged, sound, folder)
        for rest in ("-wal", "-shm"):  # of the damaged database: SQLite would take them for the new one's
            path.with_name(path.name + rest).unlink(missing_ok=True)
        os.replace(draft, path)
    return kept


def _fill_up(path: Path) -> None:
    """Fill up a database that was cut with zeros, since SQLite reads no page of one that is shorter than it says."""
    with suppress(OSError), path.open("rb") as file:
        header = file.read(32)
        claimed = int.from_bytes(header[16:18], "big") * int.from_bytes(header[28:32], "big")
        if file.seek(0, os.SEEK_END) < claimed:
            os.truncate(path, claimed)


def _locked(path: Path) -> sqlite3.Connection:
    """Open a damaged database, and lock it if it is sound enough for that."""
    connection = sqlite3.connect(path, timeout=ledger_database.PATIENCE, isolation_level=None)
    connection.text_factory = bytes
    try:
        check_schema(connection, path)
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError as error:
        if not ledger_database.is_damage(error):
            connection.close()
            raise
    return connection


def _copy(damaged: sqlite3.Connection, sound: sqlite3.Connection, folder: Path) -> Kept:
    """Copy what is sound of a database to a new one."""
    for statement in ("BEGIN", *CREATE, f"PRAGMA user_version = {SCHEMA}"):
        sound.execute(statement)
    with closing(AdversarialFile(folder / "adversaries.f32")) as file:
        kept = _copy_packs(damaged, sound, _copy_texts(damaged, sound), file)
    sound.execute("COMMIT")
    return kept


def _copy_texts(damaged: sqlite3.Connection, sound: sqlite3.Connection) -> Texts:
    """Copy the texts whose checksums hold; the number of any other stays free for a text that nobody asks for."""
    for table in TABLES:
        texts = dict(_sound_texts(damaged, table))
        for number in range(max(texts, default=-1) + 1):
            content = texts.get(number, canonical({"lost": number}))
            row = number, content, checksum_of_text(table, number, content.encode())
            sound.execute(f"INSERT INTO {table} VALUES (?, ?, ?)", row)
    sound.text_factory = bytes
    return texts_of(sound)


def _sound_texts(damaged: sqlite3.Connection, table: str) -> Iterator[tuple[int, str]]:
    for number, content, checksum in rows_from_both_ends(damaged, table, "content, checksum"):
        with suppress(*DAMAGE):
            if checksum == checksum_of_text(table, number, content):
                yield number, content.decode()


def _copy_packs(damaged: sqlite3.Connection, sound: sqlite3.Connection, texts: Texts, file: AdversarialFile) -> Kept:
    kept = dropped = 0
    for _, *columns, checksum in rows_from_both_ends(damaged, "packs", ", ".join((*PackRow._fields, "checksum"))):
        row, found = PackRow(*columns), 0
        with suppress(*DAMAGE):
            found = _copy_pack(row, checksum, sound, texts, file)
        kept, dropped = kept + found, dropped + (row.size - found if isinstance(row.size, int) else 0)
    return Kept(kept, dropped)


def _copy_pack(row: PackRow, checksum: bytes, sound: sqlite3.Connection, texts: Texts, file: AdversarialFile) -> int:
    """Copy the sound results of a pack, and return their number; what it raises on damage is in `DAMAGE`."""
    records, rankings = unpack([(row.size, row.results)])
    if row.checksum(texts, records) != checksum:
        raise ValueError("its checksum does not hold")
    good = np.array([_has_its_image(record, file) for record in records], bool)
    rankings = [ranking for ranking, is_good in zip(rankings, good, strict=True) if is_good]
    records = records[good]
    if len(records):
        copy = row._replace(
            size=len(records), tail=min(row.tail, file.size), results=pack(np.ascontiguousarray(records), rankings)
        )
        copy.insert(sound, copy.checksum(texts, records))
    return len(records)


def _has_its_image(record: np.void, file: AdversarialFile) -> bool:
    where = ImageAt(*(int(record[name]) for name in ("offset", "bytes", "checksum")))
    return where.offset < 0 or file.read(where) is not None
