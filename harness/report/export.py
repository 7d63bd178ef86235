"""A leaderboard for other programs: JSON, Parquet, and a LaTeX table for a paper. Pure."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.errors import LeaderboardError
from harness.leaderboard.row import FORMATS, LeaderboardRow, baseline_of, by_model, rows_of
from harness.report.formats import TO
from harness.report.table import (
    CLEAN,
    DELTA,
    DELTA_INTERVAL,
    MODEL,
    P_HOLM,
    ROBUST,
    ROBUST_INTERVAL,
    STEERING_OR_FIT,
    TableColumn,
)

if TYPE_CHECKING:
    import pandas as pd

COUNTS = [name for name, form in FORMATS.items() if form == "d"]


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the board with counts as whole numbers; empty cells are missing values."""
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def to_json(table: pd.DataFrame) -> str:
    """Return a list of rows, each a mapping of the board's columns; null where a number is missing."""
    return str(typed(table).to_json(orient="records", force_ascii=False, indent=2)) + "\n"


def to_parquet(table: pd.DataFrame) -> bytes:
    """Return the board with its types: text, int64, float64; null where a number is missing.

    Raises:
        LeaderboardError: pyarrow is not installed.
    """
    buffer = io.BytesIO()
    try:
        typed(table).to_parquet(buffer, engine="pyarrow", index=False)
    except ImportError as error:
        raise LeaderboardError("--parquet: needs pyarrow; pip install 'ct-harness[parquet]'") from error
    return buffer.getvalue()


LATEX: dict[str, tuple[TableColumn, ...]] = {
    "model": (MODEL,),
    r"$\beta$": (STEERING_OR_FIT,),
    r"clean (\%)": (CLEAN,),
    r"robust (\%)": (ROBUST, ROBUST_INTERVAL),
    r"$\Delta$ (points)": (DELTA, DELTA_INTERVAL),
    "$p$ (Holm)": (P_HOLM,),
}
"""Headings of the LaTeX table, each with its column, and the interval in brackets behind it."""
CLEAN_ONLY = {r"clean (\%)": (CLEAN, ROBUST_INTERVAL), r"robust (\%)": ()}
"""The same where nothing is attacked: the interval is that of the clean accuracy."""


def to_latex(table: pd.DataFrame) -> str:
    r"""Return a ``tabular`` (for ``\usepackage{booktabs}``): the baseline, the headline and other methods by model.

    Accuracies are in percent, gains in percentage points; intervals are 95 %. Models that failed are left out.

    Raises:
        LeaderboardError: every model failed.
    """
    import pandas as pd

    rows = [row for own in by_model(rows_of(table)).values() if own[0].kind != "failed" for row in _in_the_paper(own)]
    if not rows:
        raise LeaderboardError("--latex: no model was scored, so there is no table; `ct-harness show` says why")
    columns = LATEX if any(row.is_attacked for row in rows) else LATEX | CLEAN_ONLY
    shown = {heading: found for heading, found in columns.items() if found}
    cells = [{heading: _cell(row, *found) for heading, found in shown.items()} for row in rows]
    style = pd.DataFrame(cells).style.format(escape="latex").hide(axis="index")
    return style.to_latex(hrules=True, column_format="l" + "r" * (len(shown) - 1))


def _in_the_paper(rows: Sequence[LeaderboardRow]) -> list[LeaderboardRow]:
    headlines = [row for row in rows if row.is_headline]
    return [baseline_of(rows), *headlines, *(row for row in rows if row.kind == "adapted")]


def _cell(row: LeaderboardRow, column: TableColumn, interval: TableColumn | None = None) -> str:
    text = column.cell(row).text
    if text and interval is not None:
        text += f" [{interval.cell(row).text.replace(TO, ', ')}]"
    return text.replace("−", "-").replace("\N{NO-BREAK SPACE}", " ")  # LaTeX's default encodings know neither


FORMS: dict[str, tuple[str, Callable[[pd.DataFrame], str | bytes]]] = {
    "json": (".json", to_json),
    "parquet": (".parquet", to_parquet),
    "latex": (".tex", to_latex),
}
"""The suffix of a file of each form, and the function that makes its content."""
