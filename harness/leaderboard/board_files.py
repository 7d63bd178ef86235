"""A leaderboard on disk: the CSV and its outcome file, read together and checked, written together or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import LeaderboardError
from harness.leaderboard import consistency, csv_file, outcomes
from harness.leaderboard.regression import Board
from harness.leaderboard.row import rows_of
from harness.util.files import write_together

if TYPE_CHECKING:
    import pandas as pd


def write(board: Board, path: Path, question: str) -> None:
    """Write a leaderboard, its outcome file and its question, all or none.

    Args:
        board: the leaderboard.
        path: of its CSV.
        question: text of the file that says what was asked; see `harness.leaderboard.question.document`.

    Raises:
        FileError: they cannot be written.
    """
    write_together({
        outcomes.path_of(path): outcomes.to_csv(board.outcomes),
        path: csv_file.to_csv(board.table),
        path.with_suffix(".question.yaml"): question,
    })  # fmt: skip


def read(path: Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read a leaderboard, and its outcome file where there is one; its rows must follow from that.

    Raises:
        LeaderboardError: a file cannot be read, is not what it should be, or does not belong to the other one.
    """
    table, found = csv_file.read(path), outcomes.read(path)
    try:
        rows = rows_of(table)
        if found is not None:
            consistency.check(rows, found)
    except LeaderboardError as error:
        raise LeaderboardError(f"{path}: {error}") from error
    return table, found


def read_whole(path: Path) -> Board:
    """Read a leaderboard whose outcome file must be there; see `read`."""
    table, found = read(path)
    if found is None:
        raise LeaderboardError(f"{outcomes.path_of(path)}: missing; commit it, or accept a new board (--update)")
    return Board(table, found)
