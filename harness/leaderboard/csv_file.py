"""The leaderboard as a CSV file.

Columns and formats are fixed, so that computing a board again gives the same bytes, the seconds aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import LeaderboardError
from harness.leaderboard.row import FORMATS, TEXT, LeaderboardRow, rows_of, written
from harness.util.text import shown

if TYPE_CHECKING:
    import pandas as pd


def to_csv(table: pd.DataFrame) -> str:
    r"""Return the text of the CSV, its lines ended by ``\n``."""
    lines = [",".join(FORMATS)]
    for values in table[list(FORMATS)].itertuples(index=False, name=None):
        lines.append(",".join(_quoted(written(value, name)) for name, value in zip(FORMATS, values, strict=True)))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Quote as in RFC 4180; Python's csv leaves a lone carriage return bare, and readers break the row there."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def read(path: Path) -> pd.DataFrame:
    """Read a leaderboard, numbers as float64.

    Raises:
        LeaderboardError: the file is missing or is not a leaderboard.
    """
    import pandas as pd

    try:
        table = pd.read_csv(
            path,
            dtype={name: str if name in TEXT else float for name in FORMATS},
            keep_default_na=False,
            na_values={name: [""] for name in FORMATS if name not in TEXT},
        )
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path}: cannot be read as a leaderboard: {_no_number(path) or error}") from error
    missing = [name for name in FORMATS if name not in table.columns]
    unknown = [str(name) for name in table.columns if name not in FORMATS]
    if missing or unknown:
        found = (["no column " + ", ".join(missing)] if missing else []) + (
            ["an unknown column " + ", ".join(unknown)] if unknown else []
        )
        raise LeaderboardError(
            f"{path}: not a leaderboard of this version of ct-harness: {' and '.join(found)}; run its benchmark again"
        )
    if not isinstance(table.index, pd.RangeIndex) or table[TEXT].isna().any(axis=None):
        raise LeaderboardError(
            f"{path}: expected as many cells in every row as in the header, found others; run its benchmark again, or "
            "restore the file"
        )
    return table


def _no_number(path: Path) -> str:
    """Return which cell of a CSV is no number where one belongs; empty where there is none, or no CSV."""
    import pandas as pd

    try:
        cells = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return ""
    for name in (name for name in FORMATS if name not in TEXT and name in cells.columns):
        unread = (cells[name] != "") & pd.to_numeric(cells[name], errors="coerce").isna()
        if unread.any():
            return f"{name}: expected a number, found {shown(cells[name][unread].iloc[0])}; run its benchmark again"
    return ""


def read_rows(path: Path) -> list[LeaderboardRow]:
    """Read a leaderboard as typed rows.

    Raises:
        LeaderboardError: the file is missing, is not a leaderboard, or has a row that cannot be one.
    """
    table = read(path)
    try:
        return rows_of(table)
    except LeaderboardError as error:
        raise LeaderboardError(f"{path}: {error}") from error
