"""The columns of a leaderboard as people read them: heading, meaning, and each row's text and sort value.

The one renderer of a row: the terminal, the page and the LaTeX table each pick their columns from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from harness.leaderboard.row import LeaderboardRow, RowKind, known
from harness.report.formats import AT_MOST, TO, count, difference, difference_interval, p_value

USUAL_C = {"relu": 0.5, "smooth": 1.0}
"""The c of each family that needs no mention."""


class TableCell(NamedTuple):
    """Text of a cell, and the value it is sorted by; None comes last."""

    text: str
    value: float | str | None


EMPTY = TableCell("", None)


class TableColumn(NamedTuple):
    """One column of a table.

    Args:
        heading: text above the column.
        meaning: explanation of the column; empty where the heading says it all.
        cell: returns the cell of a row.
        content: what the cells hold; numbers and intervals are aligned to the right on the page.
    """

    heading: str
    meaning: str
    cell: Callable[[LeaderboardRow], TableCell]
    content: Literal["text", "number", "interval"] = "number"


class TableLine(NamedTuple):
    """One row as cells.

    Args:
        model: label of the model.
        kind: kind of the row, from which its look follows.
        flagged: whether the row has a flag.
        cells: a cell for each column.
    """

    model: str
    kind: RowKind
    flagged: bool
    cells: tuple[TableCell, ...]


def filled(columns: Iterable[TableColumn], rows: Sequence[LeaderboardRow]) -> tuple[TableColumn, ...]:
    """Return the columns that at least one row fills."""
    return tuple(column for column in columns if any(column.cell(row).text for row in rows))


def lines(columns: Sequence[TableColumn], rows: Iterable[LeaderboardRow]) -> tuple[TableLine, ...]:
    """Return the rows as cells of these columns."""
    return tuple(
        TableLine(row.model, row.kind, bool(row.flags), tuple(column.cell(row) for column in columns)) for row in rows
    )


# --- the cells ---


def _text(read: Callable[[LeaderboardRow], str]) -> Callable[[LeaderboardRow], TableCell]:
    return lambda row: TableCell(read(row), read(row) or None)


def _number(read: Callable[[LeaderboardRow], float | None], form: str) -> Callable[[LeaderboardRow], TableCell]:
    def cell(row: LeaderboardRow) -> TableCell:
        value = read(row)
        return EMPTY if value is None else TableCell(f"{value:{form}}", value)

    return cell


def _accuracy(read: Callable[[LeaderboardRow], float | None]) -> Callable[[LeaderboardRow], TableCell]:
    """Read an accuracy, or what else the metric is; of a pruned row an upper bound."""

    def cell(row: LeaderboardRow) -> TableCell:
        value = read(row)
        if value is None:
            return EMPTY
        return TableCell(f"{AT_MOST if row.kind == 'bounded' else ''}{row.metric.text(value)}", value)

    return cell


def _of_difference(cell: Callable[[LeaderboardRow], TableCell]) -> Callable[[LeaderboardRow], TableCell]:
    """Leave a cell empty where a row is not compared with the baseline; the baseline is not compared with itself."""
    return lambda row: cell(row) if row.kind in ("steered", "adapted") or row.is_headline else EMPTY


def _steering(row: LeaderboardRow) -> TableCell:
    """β of the row, or of each fold of a headline; c where it is unusual."""
    if row.is_adapted or row.kind == "failed":
        return EMPTY
    if row.is_headline:
        return TableCell(" ".join(row.chosen), min(row.chosen_betas, default=None))
    beta, c = known(row.beta), known(row.c)
    usual = row.kind == "baseline" or c == USUAL_C.get(row.family)
    return TableCell(f"{beta:g}" if usual else f"{beta:g}, c = {c:g}", beta)


def _steering_or_method(row: LeaderboardRow) -> TableCell:
    return METHOD.cell(row) if row.is_adapted else _steering(row)


def _steering_or_fit(row: LeaderboardRow) -> TableCell:
    """β of each fold, or another method with the number of parameters that it fits."""
    if row.is_adapted:
        return TableCell(f"{row.method} ({count(row.trainable_parameters or 0)} fitted)", row.method)
    return TableCell(", ".join(row.chosen) + _doubt(row), None) if row.is_headline else _steering(row)


def _choice(row: LeaderboardRow) -> TableCell:
    return TableCell(STEERING.cell(row).text + _doubt(row), None)


def _doubt(row: LeaderboardRow) -> str:
    """Status of a headline that is not to be trusted, to be put behind its β."""
    return "" if row.kind == "selected" else f" ({row.status})"


def _rank_or_status(row: LeaderboardRow) -> TableCell:
    return TableCell(row.status, None) if row.is_headline else RANK.cell(row)


def _method(row: LeaderboardRow) -> str:
    """Empty where nothing is fitted: then every row but the baseline is a steering, as β says."""
    return row.method if row.trainable_parameters or row.is_adapted else ""


def _kind(row: LeaderboardRow) -> str:
    return row.status if row.is_headline else "" if row.kind in ("steered", "adapted") else row.kind


def _metric(row: LeaderboardRow) -> str:
    return "" if row.metric.name == "accuracy" else row.metric.name


def _baseline(row: LeaderboardRow) -> float | None:
    return None if row.robust is None or row.delta_pp is None else row.robust - row.delta_pp / 100


def _robust(row: LeaderboardRow) -> float | None:
    return row.robust if row.is_attacked else None


def _robust_interval(row: LeaderboardRow) -> TableCell:
    low, high = row.robust_low, row.robust_high
    if low is None or high is None:
        return EMPTY
    return TableCell(f"{row.metric.text(low)}{TO}{row.metric.text(high)}", low)


def _delta(row: LeaderboardRow) -> TableCell:
    return TableCell(difference(row.metric, known(row.delta_pp)), row.delta_pp)


def _delta_interval(row: LeaderboardRow) -> TableCell:
    low, high = known(row.delta_low), known(row.delta_high)
    return TableCell(difference_interval(row.metric, low, high), low)


def _delta_or_baseline(row: LeaderboardRow) -> TableCell:
    return TableCell("baseline", None) if row.kind == "baseline" else DELTA.cell(row)


def _gained_and_lost(row: LeaderboardRow) -> TableCell:
    return TableCell(f"{row.gained}/{row.lost}", row.gained)


def _p_value(read: Callable[[LeaderboardRow], float | None]) -> Callable[[LeaderboardRow], TableCell]:
    def cell(row: LeaderboardRow) -> TableCell:
        p = read(row)
        return EMPTY if p is None else TableCell(p_value(p), p)

    return cell


def _steered(row: LeaderboardRow) -> TableCell:
    return EMPTY if row.steered is None else TableCell(f"{row.steered}/{row.sites}", row.steered)


def _percent(read: Callable[[LeaderboardRow], float | None]) -> Callable[[LeaderboardRow], TableCell]:
    def cell(row: LeaderboardRow) -> TableCell:
        value = read(row)
        return EMPTY if value is None else TableCell(f"{100 * value:.1f}", value)

    return cell


def _trained(row: LeaderboardRow) -> TableCell:
    trained = row.trainable_parameters
    return TableCell(count(trained), trained) if trained else EMPTY


# --- the columns ---

RANK = TableColumn("rank", "place among the model's steerings, best first", _number(lambda row: row.rank, "d"))
RANK_OR_STATUS = RANK._replace(cell=_rank_or_status)
MODEL = TableColumn("model", "", _text(lambda row: row.model), "text")
METHOD = TableColumn("method", "ct: steered, nothing else; or another way to adapt the network", _text(_method), "text")
STEERING = TableColumn("β", "the steering; of a selected row, the β of each fold", _steering)
STEERING_OR_METHOD = STEERING._replace(cell=_steering_or_method)
STEERING_OR_FIT = STEERING._replace(cell=_steering_or_fit)
CHOICE = TableColumn("β of each fold", "", _choice, "text")
SMOOTHING = TableColumn(
    "smoothing", "1 − β over the spread of the pre-activations: below 0.03 hardly anything changes, above 1 nearly all",
    _number(lambda row: row.smoothing, ".2g"),
)  # fmt: skip
KIND = TableColumn(
    "row",
    "selected: the headline (in-sample, untrusted: not to be trusted); baseline: the network untouched, or its probe; "
    "bounded: pruned, so at most",
    _text(_kind), "text",
)  # fmt: skip
METRIC = TableColumn("metric", "", _text(_metric), "text")
CLEAN = TableColumn(
    "clean", "accuracy without the threat, percent; or the metric named above", _accuracy(lambda row: row.clean)
)
ROBUST = TableColumn("robust", "accuracy under the threat, percent", _accuracy(_robust))
ROBUST_INTERVAL = TableColumn(
    "95 %", "interval of robust, or where nothing is attacked of clean: Wilson's, percent", _robust_interval, "interval"
)
BASELINE = TableColumn("baseline", "accuracy of the baseline on the same images, percent", _accuracy(_baseline))
SELECTED = TableColumn("selected", "accuracy at the selected β, percent", _accuracy(lambda row: row.robust))
DELTA = TableColumn("Δ", "robust less that of the baseline, points", _of_difference(_delta))
DELTA_OR_BASELINE = DELTA._replace(cell=_delta_or_baseline)
DELTA_INTERVAL = TableColumn("95 % of Δ", "its interval, points", _of_difference(_delta_interval), "interval")
GAINED = TableColumn("gained", "images won against the baseline", _of_difference(_number(lambda row: row.gained, "d")))
LOST = TableColumn("lost", "images lost against it", _of_difference(_number(lambda row: row.lost, "d")))
GAINED_AND_LOST = TableColumn("+/−", "images won and lost against the baseline", _of_difference(_gained_and_lost))
P_VALUE = TableColumn(
    "p",
    "of the row alone: below 0.05 exactly where the interval of Δ excludes 0",
    _of_difference(_p_value(lambda row: row.p_value)),
)
P_HOLM = TableColumn(
    "p (Holm)",
    "adjusted: of a selected row over the models, otherwise over the steerings, or over the other methods",
    _p_value(lambda row: row.p_holm),
)
OWN_ATTACK = TableColumn(
    "AA", "robust accuracy against the row's own attack alone, percent; robust counts what fooled other β too",
    _accuracy(lambda row: row.robust_aa),
)  # fmt: skip
MCE = TableColumn("mCE", "mean corruption error, percent; lower is better", _number(lambda row: row.mce, ".1f"))
PUBLISHED_CLEAN = TableColumn(
    "published clean", "of the untouched network, percent", _percent(lambda row: row.published_clean)
)
PUBLISHED_ROBUST = TableColumn(
    "published robust", "of the untouched network, percent", _percent(lambda row: row.published_robust)
)
STEERED = TableColumn("steered", "activations that the steering reaches, of all that it could", _steered)
TRAINED = TableColumn("trained", "parameters fitted on training images, the probe's among them", _trained)
FLAGS = TableColumn("flags", "explained below", _text(lambda row: " ".join(row.flags)), "text")
SECONDS = TableColumn("seconds", "of computing", _number(lambda row: row.seconds, ".0f"))

PAGE = (
    RANK, MODEL, METHOD, STEERING, SMOOTHING, KIND, CLEAN, ROBUST, ROBUST_INTERVAL, DELTA, DELTA_INTERVAL, GAINED, LOST,
    P_VALUE, P_HOLM, OWN_ATTACK, MCE, PUBLISHED_CLEAN, PUBLISHED_ROBUST, STEERED, TRAINED, FLAGS, SECONDS,
)  # fmt: skip
"""The page has every column."""
