"""Accuracy against β: what there is to see of each model of a leaderboard. `harness.report.plot` draws it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.analysis.metrics import METRICS, Metric, of_row
from harness.analysis.statistics import wilson
from harness.errors import LeaderboardError
from harness.leaderboard.csv_file import BOUNDED, CT, FAILED, IN_SAMPLE, OK, SELECTED

if TYPE_CHECKING:
    import pandas as pd

HEADLINES = (SELECTED, IN_SAMPLE)


class CurvePoint(NamedTuple):
    """One accuracy at one β, in percent, or whatever the metric is read in.

    Args:
        low: of the 95 % interval; where the row is bounded there is none, and ``value`` is what it can be at most.
        high: likewise.
    """

    beta: float
    value: float
    low: float | None
    high: float | None
    flagged: bool

    @property
    def bounded(self) -> bool:
        """Whether it is an upper bound."""
        return self.low is None


@dataclass(frozen=True)
class AccuracyCurve:
    """The accuracies of one c, β ascending, the untouched network's among them."""

    c: float
    clean: tuple[CurvePoint, ...]
    robust: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Panel:
    """What is to be seen of one model.

    Args:
        baseline: β of the untouched network.
        clean: its clean accuracy in percent, or whatever the metric is read in.
        robust: likewise.
        chosen: β of the headline, with the number of folds that chose it.
        curves: c ascending.
        others: what other methods have instead of β: robust, likewise.
        metric: that all of them are.
        attacked: whether there is a threat; otherwise clean and robust are the same.
    """

    model: str
    baseline: float
    clean: float
    robust: float
    chosen: Mapping[float, int]
    curves: tuple[AccuracyCurve, ...]
    others: Mapping[str, float] = field(default_factory=dict)
    metric: Metric = METRICS["class"]
    attacked: bool = True


def is_baseline(row: Mapping[Any, Any]) -> bool:
    """Whether a row is the untouched network's: finished, and not among those that Holm's p looks at."""
    return row["status"] == OK and not is_number(row["p_holm"])


def is_attacked(row: Mapping[Any, Any]) -> bool:
    """Whether a row is of a benchmark with a threat."""
    return bool(row["threat"] != "clean")


def is_number(value: Any) -> bool:
    """Whether a cell of the board holds a number."""
    return value is not None and value == value  # noqa: PLR0124


def models(table: pd.DataFrame) -> dict[str, list[dict[Any, Any]]]:
    """The rows of each model, in the board's order."""
    found: dict[str, list[dict[Any, Any]]] = {}
    for row in table.to_dict("records"):
        found.setdefault(str(row["model"]), []).append(row)
    return found


def panels(table: pd.DataFrame) -> list[Panel]:
    """What there is to see of every model that was scored."""
    return [_panel(model, rows) for model, rows in models(table).items() if not failure(rows)]


def failure(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Why a model has no score; empty where it has."""
    status = str(rows[0]["status"])
    return status.removeprefix(f"{FAILED}: ") if status.startswith(FAILED) else ""


def _panel(model: str, rows: Sequence[Mapping[Any, Any]]) -> Panel:
    untouched = baseline_of(model, rows)
    grid = [row for row in rows if row["status"] in (OK, BOUNDED)]
    steered = [row for row in grid if row["method"] == CT]
    others = [row for row in grid if row["method"] != CT and not is_baseline(row)]
    metric = of_row(untouched)
    cs = sorted({float(row["c"]) for row in steered}) or [float(untouched["c"])]
    return Panel(
        model,
        float(untouched["beta"]),
        metric.read(untouched["clean"]),
        metric.read(untouched["robust"]),
        Counter(beta for row in rows if row["status"] in HEADLINES for beta in chosen(row)),
        tuple(_curve(c, [untouched, *(row for row in steered if row["c"] == c)]) for c in cs),
        {str(row["method"]): metric.read(row["robust"]) for row in sorted(others, key=lambda row: str(row["method"]))},
        metric,
        is_attacked(untouched),
    )


def chosen(row: Mapping[Any, Any]) -> list[float]:
    """β of each fold of a headline row."""
    return [float(text.partition("/")[0]) for text in str(row["chosen"]).split(";") if text]


def baseline_of(model: str, rows: Sequence[Mapping[Any, Any]]) -> Mapping[Any, Any]:
    """The row of the untouched network.

    Raises:
        LeaderboardError: there is not exactly one.
    """
    found = [row for row in rows if is_baseline(row)]
    if len(found) != 1:
        raise LeaderboardError(
            f"{model}: expected one row of the untouched network, found {len(found)}; run the benchmark again"
        )
    return found[0]


def _curve(c: float, rows: Sequence[Mapping[Any, Any]]) -> AccuracyCurve:
    ordered = sorted(rows, key=lambda row: float(row["beta"]))
    return AccuracyCurve(c, tuple(map(_clean, ordered)), tuple(map(_robust, ordered)))


def _clean(row: Mapping[Any, Any]) -> CurvePoint:
    if not is_attacked(row):
        return _robust(row)
    n = int(row["n"])
    return _point(row, "clean", *wilson(row["clean"] * n, n))


def _robust(row: Mapping[Any, Any]) -> CurvePoint:
    return _point(row, "robust", row["robust_low"], row["robust_high"])


def _point(row: Mapping[Any, Any], name: str, low: float, high: float) -> CurvePoint:
    known, read = row["status"] == OK, of_row(row).read
    ends = (read(float(low)), read(float(high))) if known else (None, None)
    return CurvePoint(float(row["beta"]), read(float(row[name])), ends[0], ends[1], bool(row["flags"]))
