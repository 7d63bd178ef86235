"""The ledger: what goes in comes out, nothing committed is lost, and what cannot be read or written is explained."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.ledgers import counted, trials
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.api.records import BASELINE
from harness.api.trial import Answer, Attempt, Cost, Result, Trial
from harness.engine import ledger_database
from harness.engine.ledger import Block, Ledger, Stored
from harness.engine.packing import RECORD, pack
from harness.errors import LedgerError
from harness.util.hashing import canonical

A, B = {"steering": [0.9, 0.5, "all"], "seed": 0}, {"steering": "baseline", "seed": 0}
PROVENANCE = {"torch": "2.8 β", "device": "cpu"}
SHAPE = (1, 4, 4)
TRIAL = Trial(BASELINE, 0, Attempt("square"))  # the ledger does not look at it


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def attempt(number: int) -> str:
    return canonical({"stage": "apgd-t", "iterations": 100, "target": number})


def result(value: float = 1.0, adversarial: torch.Tensor | None = None, **answer: Any) -> Result:
    return Result(TRIAL, Answer(value, **answer), Cost(7, 5, 0.25), adversarial)


def picture(number: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(number).random(SHAPE, np.float32))


# --- what goes in comes out ---

narrow = st.floats(width=32, allow_nan=False, allow_infinity=False)
results = st.builds(
    Result,
    st.just(TRIAL),
    st.builds(
        Answer,
        narrow,
        st.just(math.nan) | narrow,
        st.lists(st.integers(0, 21_000), max_size=9).map(tuple),
    ),
    st.builds(Cost, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), narrow),
    st.none() | st.integers(0, 9).map(picture),
)
entries = st.lists(st.tuples(st.integers(0, 6).map(digest), st.integers(0, 3).map(attempt), results), max_size=12)
appends = st.lists(st.tuples(st.sampled_from([A, B]), entries, st.booleans()), max_size=6)


@given(appends)
@settings(max_examples=60)
def test_results_come_back_as_they_went_in_and_the_first_of_equal_trials_stays(
    appended: list[tuple[dict[str, Any], list[tuple[str, str, Result]], bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        expected: dict[str, dict[tuple[str, str], Result]] = {canonical(A): {}, canonical(B): {}}
        returned: dict[str, dict[tuple[str, str], Stored]] = {canonical(A): {}, canonical(B): {}}
        ledger = Ledger(Path(folder))
        for identity, some, again in appended:
            stored = ledger.append(identity, some, ["slow"], PROVENANCE)
            for (image, attempt, one), found in zip(some, stored, strict=True):
                key = image, attempt
                expected[canonical(identity)].setdefault(key, one)
                assert returned[canonical(identity)].setdefault(key, found) == found
            if again:
                ledger.__exit__(None, None, None)
                ledger = Ledger(Path(folder))
        for identity in (A, B):
            read = ledger.read(identity)
            assert read == returned[canonical(identity)]
            assert read.keys() == expected[canonical(identity)].keys()
            for key, one in expected[canonical(identity)].items():
                stored_one = read[key]
                assert stored_one.answer == one.answer  # NaN equals itself here: it is always the one of math
                assert stored_one.cost == one.cost
                assert ledger.block(stored_one.block) == Block(("slow",), PROVENANCE)
                assert (stored_one.offset >= 0) == (one.adversarial is not None)
                if one.adversarial is not None:
                    found_image = ledger.adversarial(stored_one, SHAPE)
                    assert found_image.dtype == np.float32
                    np.testing.assert_array_equal(found_image, one.adversarial.numpy())
        ledger.__exit__(None, None, None)


def test_a_trial_appended_twice_keeps_its_first_result(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        (first,) = ledger.append(A, [(digest(1), attempt(0), result(0, picture(1)))], [], PROVENANCE)
        before = (tmp_path / "adversaries.f32").stat().st_size
        assert ledger.append(A, [(digest(1), attempt(0), result(1, picture(2)))], ["late"], {}) == [first]
        assert (tmp_path / "adversaries.f32").stat().st_size == before
    with Ledger(tmp_path) as ledger:
        again = ledger.append(A, [(digest(1), attempt(0), result(1))] * 2, [], PROVENANCE)
        assert again == [first, first]
        assert ledger.read(A) == {(digest(1), attempt(0)): first}
        np.testing.assert_array_equal(ledger.adversarial(first, SHAPE), picture(1).numpy())


def test_numbers_that_float32_cannot_hold_are_rounded_the_same_at_once_and_later(tmp_path: Path) -> None:
    third = Result(TRIAL, Answer(1 / 3, 1 / 3), Cost(1, 0, 0.1))
    with Ledger(tmp_path) as ledger:
        (stored,) = ledger.append(A, [(digest(1), attempt(0), third)], [], {})
        assert stored.answer == (float(np.float32(1 / 3)), float(np.float32(1 / 3)), ())
    with Ledger(tmp_path) as ledger:
        assert ledger.read(A) == {(digest(1), attempt(0)): stored}


def test_flags_and_provenance_belong_to_the_results_that_they_came_with(tmp_path: Path) -> None:
    circumstances = [((), {}), (("b", "a"), {"torch": "1"}), (("b", "a"), {"torch": "2"}), ((), {})]
    with Ledger(tmp_path) as ledger:
        for number, (flags, provenance) in enumerate(circumstances):
            ledger.append(A, [(digest(number), attempt(0), result())], flags, provenance)
    with Ledger(tmp_path) as ledger:
        found = ledger.read(A)
        for number, expected in enumerate(circumstances):
            assert ledger.block(found[digest(number), attempt(0)].block) == expected


def test_the_same_image_in_two_datasets_is_one_image(tmp_path: Path) -> None:
    """A context names no dataset: an image is its digest, wherever it was read."""
    with Ledger(tmp_path) as ledger:
        first = [(digest(number), attempt(0), result(0)) for number in (1, 2)]
        second = [(digest(number), attempt(0), result(1)) for number in (2, 3)]
        stored = ledger.append(A, first, [], {}) + ledger.append(A, second, [], {})
        assert [one.answer.value for one in stored] == [0, 0, 0, 1]
        ledger.append(B, second, [], {})
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        kept = [content for (content,) in connection.execute("SELECT content FROM images ORDER BY id")]
    assert kept == [digest(1), digest(2), digest(3)]


# --- size and time ---


def many(images: int, attempts: int, draws: np.random.Generator) -> list[tuple[str, str, Result]]:
    """Return results of attacks with costs as random as they can be: any step of success, any share of time."""
    return [
        (
            digest(image),
            attempt(number),
            Result(
                TRIAL,
                Answer(float(draws.random() < 0.7)),
                Cost(int(draws.integers(1, 5001)), int(draws.integers(1, 101)), float(draws.random())),
                picture(0) if draws.random() < 0.1 else None,
            ),
        )
        for number in range(attempts)
        for image in range(images)
    ]


@pytest.mark.parametrize("together", [10, 100, 1000])
def test_a_trial_takes_at_most_40_bytes(together: int, tmp_path: Path) -> None:
    every = many(500, 12, np.random.default_rng(0))
    with Ledger(tmp_path) as ledger:
        for start in range(0, len(every), together):
            ledger.append(A, every[start : start + together], [], PROVENANCE)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert sum(file.stat().st_size for file in tmp_path.glob("ledger.sqlite*")) <= 40 * len(every)


def test_reading_takes_time_in_proportion(tmp_path: Path) -> None:
    """Four times the trials in about four times the time (16 if it were quadratic), measured in CPU time."""
    every = many(500, 12, np.random.default_rng(0))

    def seconds(copies: int) -> float:
        with Ledger(tmp_path / str(copies)) as ledger:
            for copy in range(copies):
                renamed = [(image, f"{attempt} {copy}", one) for image, attempt, one in every]
                for start in range(0, len(renamed), 100):
                    ledger.append(A, renamed[start : start + 100], [], PROVENANCE)
            timed = []
            for _ in range(3):
                start_time = time.process_time()
                assert len(ledger.read(A)) == copies * len(every)
                timed.append(time.process_time() - start_time)
        return min(timed)

    assert seconds(4) < 8 * seconds(1)


# --- killed at any moment ---

CHILD = """
import sys
from pathlib import Path
import numpy as np
from harness.api.trial import Answer, Cost, Result
from harness.engine.ledger import Ledger

class Tensor:  # torch takes seconds to import
    def __init__(self, number):
        self.number = number
    def numpy(self):
        return np.random.default_rng(self.number).random((1, 4, 4), np.float32)

def entry(i):
    return str(i), str(i % 3), Result(None, Answer(i % 2), Cost(7, 5, 0.25), Tensor(i) if i % 2 else None)

with Ledger(Path(sys.argv[1])) as ledger:
    done = len(ledger.read({}))
    print(done, flush=True)
    while True:
        some = [entry(i) for i in range(done, done + 7)]
        ledger.append({}, some[:3], [], {})
        ledger.append({}, some[3:], [], {})
        ledger.commit()
        done += 7
        print(done, flush=True)
"""


@pytest.mark.slow
def test_a_kill_loses_at_most_what_was_not_committed(tmp_path: Path) -> None:
    folder, drawn, last = tmp_path / "runs", random.Random(3), 0
    command = [sys.executable, "-c", CHILD, str(folder)]
    for _ in range(20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            found = int(child.stdout.readline())
            time.sleep(drawn.uniform(0, 0.15))
            child.send_signal(signal.SIGKILL)
            printed = [found, *map(int, child.stdout.read().splitlines())]
        assert found >= last, "something committed was lost"
        assert found % 7 == 0, "half a transaction was kept"
        last = printed[-1]
    with Ledger(folder) as ledger:
        there = ledger.read({})
        assert last <= len(there) <= last + 7
        for i in range(len(there)):
            stored = there[str(i), str(i % 3)]
            assert (stored.answer, stored.cost) == (Answer(i % 2), Cost(7, 5, 0.25))
            assert (stored.offset >= 0) == (i % 2 == 1)
            if stored.offset >= 0:
                np.testing.assert_array_equal(ledger.adversarial(stored, SHAPE), picture(i).numpy())
    assert last > 7 * 20, "the children hardly got to work"


def test_an_exception_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path) as ledger:  # noqa: PT012
        ledger.append(A, [(digest(1), attempt(0), result())], [], {})
        raise KeyboardInterrupt
    assert counted(tmp_path) == len(trials(tmp_path)) == 1


def test_an_exception_between_two_transactions_is_no_damage(tmp_path: Path) -> None:
    # Once: a signal between COMMIT and BEGIN left no transaction, and leaving the ledger called it damaged.
    with pytest.raises(KeyboardInterrupt), Ledger(tmp_path) as ledger:  # noqa: PT012
        ledger.append(A, [(digest(1), attempt(0), result())], [], {})
        ledger._connection.execute("COMMIT")
        raise KeyboardInterrupt
    assert counted(tmp_path) == 1


def test_what_others_read_is_what_was_committed(tmp_path: Path) -> None:
    assert counted(tmp_path) == 0
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(1), attempt(0), result())], [], {})
        assert counted(tmp_path) == 0
        ledger.commit()
        assert counted(tmp_path) == 1


def test_a_torn_image_at_the_end_of_the_file_is_skipped(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(1), attempt(0), result(0, picture(1)))], [], {})
    with (tmp_path / "adversaries.f32").open("ab") as file:
        file.write(b"\x7f" * 37)
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(2), attempt(0), result(0, picture(2)))], [], {})
    with Ledger(tmp_path) as ledger:
        for number in (1, 2):
            stored = ledger.read(A)[digest(number), attempt(0)]
            np.testing.assert_array_equal(ledger.adversarial(stored, SHAPE), picture(number).numpy())


# --- refusals ---


def refused(folder: Path) -> str:
    with pytest.raises(LedgerError) as refusal:
        Ledger(folder)
    return str(refusal.value)


def database(folder: Path, schema: int) -> bytes:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute("CREATE TABLE cells (key TEXT)")
        connection.execute(f"PRAGMA user_version = {schema}")
        connection.commit()
    return (folder / "ledger.sqlite").read_bytes()


@pytest.mark.parametrize(
    ("schema", "pieces"),
    [
        (2, ["found schema 2", "no checksums", "move {} away or choose another --runs"]),
        (1, ["found schema 1", "batches", "cannot be taken over", "move {} away or choose another --runs"]),
        (7, ["found schema 7", "newer version", "update ct-harness, or move {} away or choose another --runs"]),
        (0, ["found a database that is no ledger", "move {} away or choose another --runs"]),
    ],
)
def test_another_schema_is_explained_and_left_alone(schema: int, pieces: list[str], tmp_path: Path) -> None:
    before = database(tmp_path, schema)
    message = refused(tmp_path)
    for piece in [f"{tmp_path / 'ledger.sqlite'}: expected a ledger of schema 3", *pieces]:
        assert piece.format(tmp_path) in message
    assert (tmp_path / "ledger.sqlite").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_text("rubbish" * 300)
    assert f"ledger.sqlite: not an SQLite database; move {tmp_path} away or choose another --runs" in refused(tmp_path)
    assert (tmp_path / "ledger.sqlite").read_text() == "rubbish" * 300


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    message = refused(tmp_path / "runs" / "x")
    assert "ledger.sqlite: cannot be opened, read or written" in message
    assert "permissions or choose another --runs" in message


def test_a_ledger_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_database, "PATIENCE", 0.1)
    with Ledger(tmp_path) as ledger:
        for _ in range(2):  # before and after a commit
            assert "ledger.sqlite: in use by another run; wait until it has finished, or choose" in refused(tmp_path)
            ledger.append(A, [(digest(1), attempt(0), result())], [], {})
            ledger.commit()
    assert len(trials(tmp_path)) == 1


def full_database(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (pages,) = ledger._connection.execute("PRAGMA page_count").fetchone()
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")


def full_disk(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(file: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("fill", [full_database, full_disk])
def test_a_full_disk_loses_nothing_committed(
    fill: Callable[[Ledger, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(0), attempt(0), result())], [], {})
    with pytest.raises(LedgerError) as refusal, monkeypatch.context() as patch, Ledger(tmp_path) as ledger:  # noqa: PT012
        fill(ledger, patch)
        ledger.append(B, [(digest(i), attempt(0), result(0, picture(i))) for i in range(999)], [], {})
    assert "ledger.sqlite: cannot be written, the disk is full" in str(refusal.value)
    assert "free some space and run again: what was committed is kept" in str(refusal.value)
    assert [key[1] for key in trials(tmp_path)] == [digest(0)]


@pytest.mark.parametrize("image", [None, picture(1)])
def test_a_limit_of_file_sizes_is_told_as_a_full_disk(image: torch.Tensor | None, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(0), attempt(0), result())], [], {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, limits[1]))
    try:
        with pytest.raises(LedgerError, match="the file may not grow"), Ledger(tmp_path) as ledger:
            ledger.append(B, [(digest(i), attempt(0), result(0, image)) for i in range(2000)], [], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [key[1] for key in trials(tmp_path)] == [digest(0)]


@pytest.mark.parametrize("left", [None, 0, 63])
def test_missing_adversarial_images_are_noticed_before_more_are_written(left: int | None, tmp_path: Path) -> None:
    """Otherwise the next images would take the place of those that are missing."""
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(1), attempt(0), result(0, picture(1)))], [], {})
    path = tmp_path / "adversaries.f32"
    if left is None:
        path.unlink()
    else:
        os.truncate(path, left)
    message = refused(tmp_path)
    assert f"{path}: expected at least 64 bytes of adversarial images, found {left or 0}; put the file back" in message
    assert "`ct-harness run --repair` drops what is damaged and computes it again; or restore" in message
    assert f"or move {tmp_path} away" in message


def test_adversarial_images_that_vanish_during_a_run_are_noticed(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        (stored,) = ledger.append(A, [(digest(1), attempt(0), result(0, picture(1)))], [], {})
        os.truncate(tmp_path / "adversaries.f32", 60)
        with pytest.raises(LedgerError, match=r"adversaries\.f32: the image at byte 0 is not the one .*--repair"):
            ledger.adversarial(stored, SHAPE)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append(A, [(digest(1), attempt(0), result())], [], {})
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.execute("UPDATE packs SET results = x'0011'")
        connection.commit()
    with (
        Ledger(tmp_path) as ledger,
        pytest.raises(LedgerError, match=r"ledger\.sqlite: damaged .*--repair.*restore a backup, or"),
    ):
        ledger.read(A)


def edited(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def filled(folder: Path) -> dict[tuple[str, str], Stored]:
    """Make a ledger of two contexts with two packs each, in all of which an image was fooled and another was not."""
    with Ledger(folder) as ledger:
        for identity in (A, B):
            for some in ((1, 2), (3, 4)):
                fooled, robust = (digest(number) for number in some)
                both = [
                    (fooled, attempt(0), result(0, picture(some[0]))),
                    (robust, attempt(0), result(1, ranking=some)),
                ]
                ledger.append(identity, both, ["slow"], PROVENANCE)
        return ledger.read(A)


OTHER_VALUE = pack(np.zeros(2, RECORD), [(), ()]).hex()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE packs SET block = block + 1",
        "UPDATE packs SET size = 1",
        "UPDATE packs SET size = 'two'",
        "UPDATE packs SET tail = 0 WHERE id = 1",
        f"UPDATE packs SET results = x'{OTHER_VALUE}'",
        "UPDATE packs SET context = 1 - context",  # the results of one steering under the name of another
        "UPDATE packs SET results = (SELECT results FROM packs WHERE id = 2)",
        "UPDATE packs SET checksum = x'00'",
        "UPDATE contexts SET content = replace(content, '0.9', '0.8')",
        "UPDATE images SET content = 'x' WHERE id = 0",
        "UPDATE attempts SET content = replace(content, '100', '101')",
        "UPDATE blocks SET content = replace(content, 'slow', 'fast')",
        "UPDATE blocks SET id = 7",
        "DELETE FROM images WHERE id = 0",
        "DROP TABLE attempts",
    ],
)
def test_an_edit_is_noticed(statement: str, tmp_path: Path) -> None:
    filled(tmp_path)
    edited(tmp_path, statement)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite: damaged .*--repair"), Ledger(tmp_path) as ledger:
        ledger.read(A)


def replaced(content: bytes) -> bytes:
    return content[:64] + picture(9).numpy().tobytes() + content[128:]


def moved(content: bytes) -> bytes:
    return content[:64] + (np.frombuffer(content[64:128], "<f4") + np.float32(1e-6)).tobytes() + content[128:]


@pytest.mark.parametrize("change", [replaced, moved])
def test_an_adversarial_image_that_is_another_is_noticed(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    stored = filled(tmp_path)
    path = tmp_path / "adversaries.f32"
    path.write_bytes(change(path.read_bytes()))
    with Ledger(tmp_path) as ledger:
        np.testing.assert_array_equal(ledger.adversarial(stored[digest(1), attempt(0)], SHAPE), picture(1).numpy())
        with pytest.raises(LedgerError, match=r"adversaries\.f32: the image at byte 64 is not the one .*--repair"):
            ledger.adversarial(stored[digest(3), attempt(0)], SHAPE)


def test_the_ledger_imports_no_torch() -> None:
    code = "import sys, harness.engine.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
