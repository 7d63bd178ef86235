"""Replacement of a board by a fresh one: only by an answer to the same question that has all its rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import LeaderboardError
from harness.leaderboard import csv_file
from harness.leaderboard.question import differences
from harness.leaderboard.row import LeaderboardRow, rows_of

if TYPE_CHECKING:
    import pandas as pd

QUESTION = ("dataset", "threat", "eps", "attack", "protocol", "family", "seed", "data_sha256")
"""Columns that say in what two questions differ, before the hash of all of it does."""
LONGEST = 200
"""Characters of a board's name that are kept where the question is added to it: names are at most 255 bytes."""


def place_for(fresh: pd.DataFrame, out: Path) -> tuple[Path, str]:
    """Return where to write a board that has at least one scored model, and why not at ``out``.

    Args:
        fresh: the board.
        out: path that it is meant for.

    Returns:
        ``out``, or a path beside it, and the reason, empty for ``out`` itself.
    """
    rows = rows_of(fresh)
    reason = why_not(rows, out)
    if not reason:
        return out, ""
    return next(path for path in _names(out, rows[0].question) if not why_not(rows, path)), reason


def why_not(fresh: list[LeaderboardRow], path: Path) -> str:
    """Return why a file may not be replaced by a fresh board; empty where it may, or where there is none."""
    if not path.exists():
        return ""
    try:
        old = csv_file.read_rows(path)
    except LeaderboardError:
        return "it is no leaderboard of this version, so what it answers is not known"
    if told := _other_question(old, fresh):
        return f"it answers another question ({told})"
    scored = {row.key.name for row in old if row.is_finished or row.kind == "bounded"}
    lost = scored - {row.key.name for row in fresh if row.is_finished or row.kind == "bounded"}
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        return f"it has {min(lost)}{more}, which this run has not"
    return ""


def _other_question(old: list[LeaderboardRow], fresh: list[LeaderboardRow]) -> str:
    """Say in what two boards' questions differ."""

    def values(rows: list[LeaderboardRow], column: str) -> set[str]:
        return {row.written(column) for row in rows} - {""}

    for column in QUESTION:
        before, after = values(old, column), values(fresh, column)
        if before and after and before != after:
            there, here = (", ".join(value[:40] for value in sorted(both)) for both in (before, after))
            return f"{column}: {there} there, {here} here"
    if found := differences(old[0].parameters, fresh[0].parameters):
        return "; ".join(found)
    return "selection or steering" if values(old, "question") != values(fresh, "question") else ""


def _names(out: Path, question: str) -> Iterator[Path]:
    """Yield paths beside ``out``, named by the question, and no longer than names may be."""
    named = f"{out.stem[:LONGEST]}-{question}"
    yield out.with_name(f"{named}{out.suffix}")
    for number in count(2):
        yield out.with_name(f"{named}-{number}{out.suffix}")
