"""The rows of a leaderboard as people read them: each cell's text, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from harness.analysis.metrics import of_row
from harness.leaderboard.csv_file import BOUNDED, OWN
from harness.report import curves
from harness.report.verdict import gain

USUAL_C = {"relu": 0.5, "smooth": 1.0}
"""Of each family; another one is named."""

Row = Mapping[Any, Any]
Kind = Literal["selected", "untouched", "bounded", "failed", "ok"]


class Cell(NamedTuple):
    """What a cell shows, and what it is sorted by; None comes last."""

    text: str
    value: float | str | None


EMPTY = Cell("", None)
TO = "\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}"
"""Between the ends of an interval, which stay on a line."""


class Column(NamedTuple):
    """A column: its heading, what that means, how a row fills it, and whether it holds numbers."""

    name: str
    meaning: str
    fill: Callable[[Row], Cell]
    numeric: bool = True


class Line(NamedTuple):
    """A row of the table."""

    model: str
    kind: Kind
    flagged: bool
    cells: tuple[Cell, ...]


def listed(rows: Sequence[Row]) -> tuple[tuple[Column, ...], tuple[Line, ...]]:
    """The columns that any row fills, and the lines."""
    columns = tuple(column for column in COLUMNS if any(column.fill(row).text for row in rows))
    lines = (
        Line(str(row["model"]), kind_of(row), bool(row["flags"]), tuple(column.fill(row) for column in columns))
        for row in rows
    )
    return columns, tuple(lines)


def kind_of(row: Row) -> Kind:
    """What kind of row it is."""
    if curves.failure([row]):
        return "failed"
    if row["status"] in curves.HEADLINES:
        return "selected"
    return "untouched" if curves.is_baseline(row) else "bounded" if row["status"] == BOUNDED else "ok"


def _number(name: str, form: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(f"{row[name]:{form}}", float(row[name])) if curves.is_number(row[name]) else EMPTY


def _read(name: str) -> Callable[[Row], Cell]:
    def fill(row: Row) -> Cell:
        if not curves.is_number(row[name]):
            return EMPTY
        metric = of_row(row)
        at_most = "≤\N{NO-BREAK SPACE}" if row["status"] == BOUNDED else ""
        return Cell(f"{at_most}{metric.text(row[name])}", float(row[name]))

    return fill


def _robust(row: Row) -> Cell:
    return _read("robust")(row) if curves.is_attacked(row) else EMPTY


def _percent(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(f"{100 * row[name]:.1f}", float(row[name])) if curves.is_number(row[name]) else EMPTY


def _word(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(str(row[name]).replace(";", " "), str(row[name]) or None)


def _beta(row: Row) -> Cell:
    if row["method"] not in OWN:
        return EMPTY
    if row["chosen"]:
        return Cell(str(row["chosen"]).replace(";", " "), min(curves.chosen(row)))
    if curves.failure([row]):
        return EMPTY
    usual = curves.is_baseline(row) or row["c"] == USUAL_C[row["family"]]
    return Cell(f"{row['beta']:g}" if usual else f"{row['beta']:g}, c = {row['c']:g}", float(row["beta"]))


def _kind(row: Row) -> Cell:
    kind = kind_of(row)
    text = str(row["status"]) if kind == "selected" else "" if kind == "ok" else kind
    return Cell(text, text or None)


def _robust_interval(row: Row) -> Cell:
    low, high = row["robust_low"], row["robust_high"]
    if not curves.is_number(low):
        return EMPTY
    metric = of_row(row)
    return Cell(f"{metric.text(low)}{TO}{metric.text(high)}", float(low))


def _gain(row: Row) -> Cell:
    return Cell(gain(row, row["delta_pp"]), float(row["delta_pp"])) if _compared(row) else EMPTY


def _gain_interval(row: Row) -> Cell:
    low, high = row["delta_low"], row["delta_high"]
    return Cell(f"{gain(row, low)}{TO}{gain(row, high)}", float(low)) if _compared(row) else EMPTY


def _images(name: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(f"{row[name]:.0f}", float(row[name])) if _compared(row) else EMPTY


def _compared(row: Row) -> bool:
    """Whether it is compared with the untouched network, which is not compared with itself."""
    return curves.is_number(row["delta_pp"]) and not curves.is_baseline(row)


def _p_value(row: Row) -> Cell:
    value = row["p_value"] if row["status"] in curves.HEADLINES else row["p_holm"]
    return Cell(f"{value:.2g}", float(value)) if curves.is_number(value) else EMPTY


def _steered(row: Row) -> Cell:
    steered, sites = row["steered"], row["sites"]
    return Cell(f"{steered:.0f} of {sites:.0f}", float(steered)) if curves.is_number(steered) else EMPTY


def _method(row: Row) -> Cell:
    """Where nothing is fitted every row but the untouched network's is a steering, and that is told by β."""
    return _word("method")(row) if _trained(row).text else EMPTY


def _trained(row: Row) -> Cell:
    value = row["trainable_parameters"]
    return Cell(f"{value:,.0f}", float(value)) if curves.is_number(value) and value else EMPTY


COLUMNS = (
    Column("rank", "place among the model's steerings, best first", _number("rank", ".0f")),
    Column("model", "", _word("model"), numeric=False),
    Column("method", "ct: steered, nothing else; or another way to adapt the network", _method, numeric=False),
    Column("β", "the steering; of a selected row, the β of each fold", _beta),
    Column("row", "selected: the headline; untouched: the network as it is; bounded: given up, at most", _kind, False),
    Column("clean", "accuracy without the threat, percent; or the metric named above", _read("clean")),
    Column("robust", "accuracy under the threat, percent", _robust),
    Column("95 %", "interval of robust, or where nothing is attacked of clean: Wilson's, percent", _robust_interval),
    Column("Δ", "robust less that of the untouched network, points", _gain),
    Column("95 % of Δ", "its interval, points", _gain_interval),
    Column("gained", "images won against the untouched network", _images("gained")),
    Column("lost", "images lost against it", _images("lost")),
    Column("p", "adjusted over the steerings, or over the other methods (Holm); of a selected row its own", _p_value),
    Column("replay", "accuracy when adversarial images found at other β count too, percent", _read("robust_replay")),
    Column("mCE", "mean corruption error, percent; lower is better", _number("mce", ".1f")),
    Column("published clean", "of the untouched network, percent", _percent("published_clean")),
    Column("published robust", "of the untouched network, percent", _percent("published_robust")),
    Column("steered", "activations that the steering reaches", _steered),
    Column("trained", "numbers that were fitted on training images, the probe's among them", _trained),
    Column("flags", "explained below", _word("flags"), numeric=False),
    Column("seconds", "of computing", _number("seconds", ".0f")),
)
