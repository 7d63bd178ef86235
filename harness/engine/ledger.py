"""The ledger of a benchmark: the result of every trial in one SQLite file, so that nothing computed is ever lost.

A result is found again by what it depends on alone: the identity of its task and steering (its context), its image's
digest and its attempt. So a rerun, a larger grid, more images or another executor compute only what is missing.

    ledger.sqlite      the results; see `harness.engine.ledger_database` and `harness.engine.packing`
    adversaries.f32    the adversarial images; see `harness.engine.adversarial_file`

Whatever is read is held against its checksum first, so a damaged ledger is refused and never believed;
`harness.engine.repair` keeps what is sound of one.

An adversarial image is written before the transaction that refers to it is committed, so a kill at any moment loses the
results that were not committed and nothing else. A power failure loses no more: the images are forced to the disk
before the commit, and the commit itself as well (``synchronous = FULL``; ``NORMAL`` would survive a kill alone). That
costs milliseconds a commit, and there is about one a second.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from harness.api.trial import Answer, Cost, Result
from harness.engine.adversarial_file import AdversarialFile, ImageAt
from harness.engine.ledger_database import PackRow, explained, explained_reading, opened, remedy, texts_of
from harness.engine.packing import RECORD, pack, unpack
from harness.errors import LedgerError
from harness.util.hashing import canonical


class Stored(NamedTuple):
    """A result as the ledger holds it; its numbers are rounded to float32.

    Args:
        answer: what the trial has shown.
        cost: its price.
        block: number of its `Block`.
        offset: place of its adversarial image; −1 if it has none.
        checksum: that of its adversarial image; 0 if it has none.
    """

    answer: Answer
    cost: Cost
    block: int
    offset: int
    checksum: int


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
        with explained_reading(self.path), ExitStack() as stack:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = stack.enter_context(closing(opened(self.path)))
            self._file = stack.enter_context(closing(AdversarialFile(folder / "adversaries.f32")))
            self._check_images()
            self._texts = texts_of(self._connection)
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
        context = self._texts.contexts.find(canonical(identity))
        if context is None:
            return {}
        blocks, records, rankings = self._packs(context)
        digests = map(self._texts.images.texts.__getitem__, records["image"].tolist())
        attempts = map(self._texts.attempts.texts.__getitem__, records["attempt"].tolist())
        return dict(zip(zip(digests, attempts, strict=True), _stored(blocks, records, rankings), strict=True))

    def contexts(self) -> list[dict[str, Any]]:
        """Return the identities under which there are results, in the order of their first result."""
        return [json.loads(text) for text in self._texts.contexts.texts]

    def block(self, number: int) -> Block:
        """Return the circumstances of results by their `Stored.block`."""
        content = json.loads(self._texts.blocks.texts[number])
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
        texts = self._texts
        with explained(self.path):
            context = texts.contexts.number(canonical(identity))
            block = texts.blocks.number(canonical({"flags": list(flags), "provenance": dict(provenance)}))
            keys = [_key(texts.images.number(digest), texts.attempts.number(attempt)) for digest, attempt, _ in entries]
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
        with explained(self.path):
            self._file.sync()
            if self._connection.in_transaction:  # not where a signal has come between the two lines below
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
        where = ImageAt(stored.offset, 4 * math.prod(shape), stored.checksum)
        with explained(self._file.path):
            image = self._file.read(where)
        if image is None:
            raise LedgerError(
                f"{self._file.path}: the image at byte {where.offset:,} is not the one that was written there; "
                f"{remedy(self.path.parent)}"
            )
        return image.reshape(shape)

    def _packs(self, context: int) -> tuple[list[int], np.ndarray, list[tuple[int, ...]]]:
        """Return the block, the record and the ranking of every result of a context."""
        query = "SELECT block, size, tail, results, checksum FROM packs WHERE context = ? ORDER BY id"
        with explained_reading(self.path):
            found = self._connection.execute(query, (context,)).fetchall()
            rows = [PackRow(context, *columns) for *columns, _ in found]
            records, rankings = unpack((row.size, row.results) for row in rows)
            start = 0
            for row, (*_, checksum) in zip(rows, found, strict=True):
                if row.checksum(self._texts, records[start : start + row.size]) != checksum:
                    raise ValueError("a checksum of results does not hold")
                start += row.size
        return [row.block for row in rows for _ in range(row.size)], records, rankings

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
        images = dict(zip(adversarial, self._file.append([*adversarial.values()]), strict=True))
        records = np.array([_record(key, one, images.get(key, NOWHERE)) for key, one in results.items()], RECORD)
        rankings = [one.answer.ranking for one in results.values()]
        row = PackRow(context, block, len(records), self._file.size, pack(records, rankings))
        row.insert(self._connection, row.checksum(self._texts, records))
        return dict(zip(results, _stored([block] * len(records), records, rankings), strict=True))

    def _check_images(self) -> None:
        last = self._connection.execute("SELECT tail FROM packs ORDER BY id DESC LIMIT 1").fetchone()
        if last and self._file.size < last[0]:
            raise LedgerError(
                f"{self._file.path}: expected at least {last[0]:,} bytes of adversarial images, found "
                f"{self._file.size:,}; put the file back, or {remedy(self.path.parent)}"
            )


NOWHERE = ImageAt(-1, 0, 0)
"""Place of the adversarial image of a result that has none."""


def _key(image: Any, attempt: Any) -> Any:
    """Return one number for an image and an attempt, or an array of them for arrays."""
    return image << 32 | attempt


def _record(key: int, result: Result, image: ImageAt) -> tuple[float, ...]:
    """Return the `RECORD` of a result."""
    answer, cost = result.answer, result.cost
    return (
        *divmod(key, 1 << 32), answer.value + 0.0, answer.margin,  # no negative zero
        len(answer.ranking),
        cost.forwards, cost.backwards, cost.seconds, *image,
    )  # fmt: skip


def _stored(blocks: Sequence[int], records: np.ndarray, rankings: Sequence[tuple[int, ...]]) -> Iterator[Stored]:
    """Yield results as a caller sees them. Equal answers of attacks are one object: there are millions."""
    values, margins = records["value"].tolist(), records["margin"].tolist()
    plain = {value: Answer(value) for value in set(values)}
    answers = [*map(plain.__getitem__, values)]
    for i in np.flatnonzero(~np.isnan(records["margin"]) | (records["ranks"] > 0)).tolist():
        answers[i] = Answer(values[i], math.nan if math.isnan(margins[i]) else margins[i], rankings[i])
    costs = map(Cost, *(records[column].tolist() for column in ("forwards", "backwards", "seconds")))
    return map(Stored, answers, costs, blocks, records["offset"].tolist(), records["checksum"].tolist())
