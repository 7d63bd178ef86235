"""A leaderboard on disk: CSV, outcome file and question file. Whatever writes or reads a board does so here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import LeaderboardError
from harness.leaderboard import consistency, csv_file, outcomes, seal
from harness.leaderboard.regression import Board
from harness.leaderboard.row import LeaderboardRow, rows_of
from harness.util.files import write_together

if TYPE_CHECKING:
    import pandas as pd


class StoredBoard(NamedTuple):
    """A leaderboard as its files have it.

    Args:
        path: path of its CSV.
        table: content of its CSV.
        rows: its rows.
        outcomes: content of its outcome file; None where there is none.
        doubt: why it could not be held against what was computed, as a sentence; empty where it could.
    """

    path: Path
    table: pd.DataFrame
    rows: list[LeaderboardRow]
    outcomes: pd.DataFrame | None
    doubt: str


def question_of(path: Path) -> Path:
    """Return the path of the question file of a leaderboard."""
    return path.with_suffix(".question.yaml")


def paths_of(path: Path) -> dict[str, Path]:
    """Return the paths of all files of a leaderboard, by what they are."""
    return {"CSV": path, "outcomes": outcomes.path_of(path), "question": question_of(path)}


def files_of(path: Path) -> dict[str, Path]:
    """Return the files of a leaderboard that are there, by what they are."""
    return {name: file for name, file in paths_of(path).items() if file.exists()}


def write(board: Board, path: Path, question: str) -> None:
    """Write a leaderboard, its outcome file and its question, all or none.

    Args:
        board: the leaderboard.
        path: of its CSV.
        question: text that says what was asked; see `harness.leaderboard.question.document`.

    Raises:
        FileError: they cannot be written.
    """
    write_together({
        outcomes.path_of(path): outcomes.to_csv(board.outcomes),
        path: csv_file.to_csv(board.table),
        question_of(path): seal.sealed(question, seal.digests(question, rows_of(board.table), board.outcomes)),
    })  # fmt: skip


def read(path: Path) -> StoredBoard:
    """Read a leaderboard, which must be as it was written and follow from its outcome file, where these files are.

    Raises:
        LeaderboardError: a file cannot be read, is not what it should be, or does not belong to the other ones.
    """
    table, found, (question, digests) = csv_file.read(path), outcomes.read(path), _question(question_of(path))
    try:
        rows = rows_of(table)
        consistency.check_rows(rows)
        if found is not None:
            consistency.check(rows, found)
    except LeaderboardError as error:
        raise LeaderboardError(f"{path}: {error}") from error
    now = seal.digests(question, rows, found)
    names = {"question": question_of(path), "board": path, "outcomes": outcomes.path_of(path)}
    if edited := [str(names[name]) for name in now if digests.get(name, now[name]) != now[name]]:
        raise LeaderboardError(
            f"{edited[0]}: expected what was written together with {_others(edited[0], names)}, found other values; "
            "run the benchmark again, or restore all of these files"
        )
    missing = [] if found is not None else [f"{names['outcomes'].name} is missing"]
    if not digests:
        there = question_of(path).exists()
        missing.append(f"{names['question'].name} {'has no digests (sha256) at its end' if there else 'is missing'}")
    doubt = f"{path}: not held against what was computed: {' and '.join(missing)}" if missing else ""
    return StoredBoard(path, table, rows, found, doubt)


def read_whole(path: Path) -> Board:
    """Read a leaderboard all of whose files must be there; see `read`."""
    stored = read(path)
    if stored.outcomes is None or stored.doubt:
        raise LeaderboardError(f"{stored.doubt}; commit all three files, or accept a new board (--update)")
    return Board(stored.table, stored.outcomes)


def _question(path: Path) -> tuple[str, dict[str, str]]:
    """Read a question file; nothing where there is none."""
    try:
        return seal.parted(path.read_bytes().decode(errors="replace"))
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        raise LeaderboardError(f"{path}: cannot be read: {error}; restore it, or run the benchmark again") from error


def _others(edited: str, names: dict[str, Path]) -> str:
    return " and ".join(path.name for path in names.values() if str(path) != edited and path.exists())
