"""What is stored may be damaged in any way: then it is refused by name, or the board is the same. Never another one.

A mutation flips bits, cuts the file, leaves out or repeats a stretch of it, or fills one with another's bytes. The
commands run in this process, on a run that is computed once, without computing anything that is not missing.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers import tiny
from helpers.commands import Ended, in_process, untimed
from helpers.packages import INSTALLED
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from harness.engine import ledger_database
from harness.engine.ledger import Ledger
from harness.errors import LeaderboardError, LedgerError
from harness.leaderboard import board_files, csv_file
from harness.leaderboard.regression import Board

MUTATIONS = 500
SECONDS = 10
"""Most that a command may take of the processor: of a busy machine, a clock says nothing."""
bounded = settings(max_examples=MUTATIONS, derandomize=True, database=None, suppress_health_check=[*HealthCheck])

Mutation = Callable[[bytes], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """Draw a change of bytes; its places are shares of the length, so that it fits any file."""
    kind = draw(st.sampled_from(["flip", "flip", "cut", "drop", "repeat", "fill"]))
    share = st.floats(0, 1, exclude_max=True)
    first, second = draw(share), draw(share)
    bits = draw(st.lists(st.tuples(share, st.integers(0, 7)), min_size=1, max_size=3))
    filling = draw(st.sampled_from([b"\0", b"\xff", b"0", b"9", b",", b"\n", b"inf", b"-1"]))

    def mutated(content: bytes) -> bytes:
        start, end = int(first * len(content)), int(first * len(content)) + 1 + int(second * 64)
        if kind == "flip":
            flipped = bytearray(content)
            for place, bit in bits:
                flipped[int(place * len(content))] ^= 1 << bit
            return bytes(flipped)
        if kind == "cut":
            return content[:start]
        if kind == "drop":
            return content[:start] + content[end:]
        if kind == "repeat":
            return content[:end] + content[start:]
        return content[:start] + filling + content[start + len(filling) :]

    return mutated


@st.composite
def edits(draw: st.DrawFn) -> str:
    """Draw an edit of a ledger by SQL: a column of a row takes the value of another row, or one of its own."""
    columns = {"packs": ("context", "block", "size", "tail", "results", "checksum")}
    table = draw(st.sampled_from(["packs", "packs", *ledger_database.TABLES]))
    column = draw(st.sampled_from(columns.get(table, ("content", "checksum"))))
    row, other = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    of_other = f"(SELECT {column} FROM {table} ORDER BY id LIMIT 1 OFFSET {other} % (SELECT count(*) FROM {table}))"
    value = draw(st.sampled_from([of_other, of_other, f"{column} + 1", "0", "'9'", "x'00'"]))
    which = f"(SELECT id FROM {table} ORDER BY id LIMIT 1 OFFSET {row} % (SELECT count(*) FROM {table}))"
    return f"UPDATE {table} SET {column} = {value} WHERE id = {which}"


@dataclass(frozen=True)
class Home:
    """A directory with a benchmark that has been run.

    Args:
        folder: the directory.
        board: the lines of its board, without the seconds.
        content: the bytes of each file that may be damaged, by path.
    """

    folder: Path
    board: list[str]
    content: dict[Path, bytes]

    def damage(self, path: Path, mutation: Mutation) -> bool:
        """Put everything back but for one file, which is mutated; return whether it is another now."""
        for file, content in self.content.items():
            file.write_bytes(content)
        for rest in ("-wal", "-shm"):
            (LEDGER.parent / (LEDGER.name + rest)).unlink(missing_ok=True)
        path.write_bytes(mutation(self.content[path]))
        return path.read_bytes() != self.content[path]

    def board_now(self) -> list[str]:
        return untimed(BOARD.read_text())


BOARD = Path("leaderboards/tiny.csv")
OUTCOMES = Path("leaderboards/tiny.outcomes.csv")
QUESTION = Path("leaderboards/tiny.question.yaml")
LEDGER = Path("runs/tiny/ledger.sqlite")
IMAGES = Path("runs/tiny/adversaries.f32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("damaged")
    tiny.save_images(folder)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny.mapping()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(INSTALLED))
        assert in_process("run", "tiny.yaml").code == 0
        content = {path: path.read_bytes() for path in (BOARD, OUTCOMES, QUESTION, LEDGER, IMAGES)}
        yield Home(folder, untimed(BOARD.read_text()), content)


def refused(ended: Ended, *names: Path) -> bool:
    """Return whether a command has refused its input, which it must do with one message that names a file."""
    if ended.code == 0:
        return False
    assert ended.code == 2
    (message,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert any(str(name) in message for name in names), message
    assert "Traceback" not in ended.err
    return True


# --- the ledger ---


def everything(folder: Path) -> dict[tuple[str, ...], tuple[object, ...]]:
    """Return all that a board takes from a ledger: answers, costs, flags, provenance, adversarial images."""
    found: dict[tuple[str, ...], tuple[object, ...]] = {}
    with Ledger(folder) as ledger:
        for text in ledger._texts.contexts.texts:
            for key, stored in ledger.read(json.loads(text)).items():
                image = ledger.adversarial(stored, (1, 8, 8)).tobytes() if stored.offset >= 0 else b""
                found[text, *key] = (stored.answer, stored.cost, repr(ledger.block(stored.block)), image)
    return found


@pytest.fixture(scope="module")
def whole(home: Home) -> dict[tuple[str, ...], tuple[object, ...]]:
    found = everything(LEDGER.parent)
    assert any(image for *_, image in found.values())
    return found


Everything = dict[tuple[str, ...], tuple[object, ...]]


def is_refused_or_gives_nothing_else(whole: Everything) -> None:
    started = time.process_time()
    try:
        found = everything(LEDGER.parent)
    except LedgerError as error:
        assert str(LEDGER.parent) in str(error)  # noqa: PT017
    else:
        assert found.items() <= whole.items()
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("path", [LEDGER, IMAGES])
@seed(16)
@given(mutation=mutations())
@bounded
def test_a_damaged_ledger_is_refused_by_name_or_gives_nothing_else(
    home: Home, whole: Everything, path: Path, mutation: Mutation
) -> None:
    home.damage(path, mutation)
    is_refused_or_gives_nothing_else(whole)


@seed(16)
@given(statement=edits())
@bounded
def test_an_edited_ledger_is_refused_by_name_or_gives_nothing_else(
    home: Home, whole: Everything, statement: str
) -> None:
    home.damage(LEDGER, lambda content: content)
    with closing(sqlite3.connect(LEDGER, isolation_level=None)) as connection:
        connection.execute(statement)
    is_refused_or_gives_nothing_else(whole)


@pytest.mark.slow
@seed(16)
@given(path=st.sampled_from([LEDGER, IMAGES]), mutation=mutations())
@settings(bounded, max_examples=12)
def test_a_run_on_a_damaged_ledger_gives_the_same_board_or_refuses_and_repair_mends_it(
    home: Home, path: Path, mutation: Mutation
) -> None:
    home.damage(path, mutation)
    ended = in_process("run", "tiny.yaml")
    if refused(ended, LEDGER, IMAGES, LEDGER.parent):
        assert BOARD.read_bytes() == home.content[BOARD]
        repaired = in_process("run", "tiny.yaml", "--repair")
        if "not an SQLite database" in repaired.err or "schema" in repaired.err:
            return  # what is no ledger at all is left alone
        assert repaired.code == 0, repaired.err
    assert home.board_now() == home.board


# --- the board, its outcome file and its question file ---


@pytest.fixture(scope="module")
def fresh(home: Home) -> Board:
    home.damage(BOARD, lambda content: content)  # as it was written, whatever another test has made of it
    return board_files.read_whole(BOARD)


@pytest.mark.parametrize("path", [BOARD, OUTCOMES, QUESTION])
@seed(16)
@given(mutation=mutations(), command=st.sampled_from(["show", "compare"]))
@bounded
def test_a_damaged_board_is_the_same_board_or_refused_by_name(
    home: Home, fresh: Board, path: Path, mutation: Mutation, command: str
) -> None:
    """Without its digests, which a question file that was cut has lost, it is shown with a warning and not judged."""
    home.damage(path, mutation)
    started = time.process_time()
    ended = in_process(command, str(BOARD))
    if not refused(ended, BOARD, OUTCOMES, QUESTION):
        stored = board_files.read(BOARD)
        assert csv_file.to_csv(stored.table) == csv_file.to_csv(fresh.table)
        if stored.doubt:
            assert ended.err == f"warning: {stored.doubt}\n"
            with pytest.raises(LeaderboardError, match="no digests"):
                board_files.read_whole(BOARD)
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("path", [BOARD, OUTCOMES, QUESTION])
def test_check_refuses_an_edited_board_before_it_computes_anything(home: Home, path: Path) -> None:
    home.damage(path, lambda content: content.replace(b"\n", b"\n\n,", 1))
    ended = in_process("check", "tiny.yaml", "--against", str(BOARD), "--runs", "elsewhere")
    assert refused(ended, path)
    assert not Path("elsewhere").exists()


# --- a full disk ---


@pytest.mark.slow
def test_a_full_disk_while_an_adversary_is_written_is_one_message_and_the_same_command_goes_on(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.damage(BOARD, lambda content: content)
    shutil.rmtree("full", ignore_errors=True)
    write, written = os.write, []

    def full(file: int, content: bytes) -> int:
        if len(content) == 256:
            written.append(file)
            if len(written) > 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        ended = in_process("run", "tiny.yaml", "--runs", "full")
    assert refused(ended, Path("full/tiny/ledger.sqlite"))
    assert "the disk is full" in ended.err
    assert BOARD.read_bytes() == home.content[BOARD]
    assert in_process("run", "tiny.yaml", "--runs", "full").code == 0
    assert home.board_now() == home.board
