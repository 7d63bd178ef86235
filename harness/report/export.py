"""A leaderboard for other programs: JSON, Parquet, and a LaTeX table for a paper. Pure."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.analysis.metrics import of_row
from harness.errors import LeaderboardError
from harness.leaderboard.csv_file import FORMATS, OK, OWN
from harness.report.curves import HEADLINES, baseline_of, failure, models
from harness.report.verdict import Row

if TYPE_CHECKING:
    import pandas as pd

COUNTS = [name for name, kind in FORMATS.items() if kind == "d"]


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The board with whole numbers where its columns count something; empty cells are missing values."""
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def to_json(table: pd.DataFrame) -> str:
    """A list of rows, each a mapping of the board's columns; null where a number is missing."""
    return str(typed(table).to_json(orient="records", force_ascii=False, indent=2)) + "\n"


def to_parquet(table: pd.DataFrame) -> bytes:
    """The board with its types: text, int64, float64; null where a number is missing.

    Raises:
        LeaderboardError: pyarrow is not installed.
    """
    buffer = io.BytesIO()
    try:
        typed(table).to_parquet(buffer, engine="pyarrow", index=False)
    except ImportError as error:
        raise LeaderboardError("--parquet: needs pyarrow; pip install 'ct-harness[parquet]'") from error
    return buffer.getvalue()


def to_latex(table: pd.DataFrame) -> str:
    r"""A ``tabular`` (for ``\usepackage{booktabs}``): of each model the untouched network, and the headline's gain.

    Accuracies are in percent, gains in percentage points; intervals are 95 %. Models that failed are left out.

    Raises:
        LeaderboardError: all did.
    """
    import pandas as pd

    rows = [cells for model, rows in models(table).items() if not failure(rows) for cells in _cells(model, rows)]
    if not rows:
        raise LeaderboardError("--latex: no model was scored, so there is no table; `ct-harness show` says why")
    style = pd.DataFrame(rows).style
    return style.format(escape="latex").hide(axis="index").to_latex(hrules=True, column_format="lrrrrr")


def _cells(model: str, rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    others = [row for row in rows if row["method"] not in OWN and row["status"] == OK]
    headlines = [row for row in rows if row["status"] in HEADLINES]
    for row in (baseline_of(model, rows), *headlines, *others):
        compared = row in headlines or row in others
        yield {
            "model": model,
            r"$\beta$": _steering(row),
            r"clean (\%)": _read(row, "clean"),
            r"robust (\%)": _robust(row),
            r"$\Delta$ (points)": _gain(row) if compared else "",
            "$p$": f"{row['p_value']:.2g}" if compared else "",
        }


def _steering(row: Row) -> str:
    """The β that were chosen, the untouched network's, or another method, with how many numbers that fits."""
    if row["method"] not in OWN:
        return f"{row['method']} ({row['trainable_parameters']:,.0f} fitted)"
    return str(row["chosen"]).replace(";", ", ") or f"{row['beta']:g}"


def _robust(row: Row) -> str:
    return f"{_read(row, 'robust')} [{_read(row, 'robust_low')}, {_read(row, 'robust_high')}]"


def _read(row: Row, column: str) -> str:
    return of_row(row).text(row[column])


def _gain(row: Row) -> str:
    metric = of_row(row)
    points = [f"{metric.points(row[name]):+{metric.form}}" for name in ("delta_pp", "delta_low", "delta_high")]
    return f"{points[0]} [{points[1]}, {points[2]}]"


FORMS: dict[str, tuple[str, Callable[[pd.DataFrame], str | bytes]]] = {
    "json": (".json", to_json),
    "parquet": (".parquet", to_parquet),
    "latex": (".tex", to_latex),
}
"""The suffix of a file of each form, and what makes its content."""
