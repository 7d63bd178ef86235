"""Accuracy against β for each model of a leaderboard, as `harness.report.plot` draws it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.analysis.metrics import METRICS, Metric
from harness.analysis.statistics import wilson
from harness.leaderboard.row import LeaderboardRow, baseline_of, by_model, known


class CurvePoint(NamedTuple):
    """One accuracy at one β, in percent, or whatever the metric is read in.

    Args:
        beta: β of the row.
        value: the accuracy; where the row is bounded, an upper bound.
        low: lower end of its 95 % interval; None where the row is bounded.
        high: upper end, likewise.
        flagged: whether the row has a flag.
    """

    beta: float
    value: float
    low: float | None
    high: float | None
    flagged: bool

    @property
    def bounded(self) -> bool:
        """True where the accuracy is an upper bound."""
        return self.low is None


@dataclass(frozen=True)
class AccuracyCurve:
    """The accuracies of one c, β ascending, the untouched network's among them."""

    c: float
    clean: tuple[CurvePoint, ...]
    robust: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Panel:
    """The picture of one model; accuracies are in percent, or whatever the metric is read in.

    Args:
        model: label of the model.
        baseline: β of the untouched network.
        clean: clean accuracy of the untouched network.
        robust: robust accuracy of the untouched network.
        chosen: each β that the headline chose, with the number of folds that chose it.
        curves: a curve for each c, ascending.
        others: robust accuracy of each method other than steering.
        metric: what is measured.
        attacked: whether there is a threat; without one, clean and robust are the same.
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


def panels(rows: Sequence[LeaderboardRow]) -> list[Panel]:
    """Return the panel of every model that was scored.

    Raises:
        LeaderboardError: a scored model has no baseline.
    """
    return [_panel(own) for own in by_model(rows).values() if own[0].kind != "failed"]


def _panel(rows: Sequence[LeaderboardRow]) -> Panel:
    baseline = baseline_of(rows)
    read = baseline.metric.read
    steered = [row for row in rows if row.kind in ("steered", "bounded") and not row.is_adapted]
    adapted = sorted((row for row in rows if row.kind == "adapted"), key=lambda row: row.method)
    cs = sorted({known(row.c) for row in steered}) or [known(baseline.c)]
    return Panel(
        baseline.model,
        known(baseline.beta),
        read(known(baseline.clean)),
        read(known(baseline.robust)),
        Counter(beta for row in rows if row.is_headline for beta in row.chosen_betas),
        tuple(_curve(c, [baseline, *(row for row in steered if row.c == c)]) for c in cs),
        {row.method: read(known(row.robust)) for row in adapted},
        baseline.metric,
        baseline.is_attacked,
    )


def _curve(c: float, rows: Sequence[LeaderboardRow]) -> AccuracyCurve:
    ordered = sorted(rows, key=lambda row: known(row.beta))
    return AccuracyCurve(c, tuple(map(_clean, ordered)), tuple(map(_robust, ordered)))


def _clean(row: LeaderboardRow) -> CurvePoint:
    if not row.is_attacked:
        return _robust(row)
    n = known(row.n)
    return _point(row, row.clean, *wilson(known(row.clean) * n, n))


def _robust(row: LeaderboardRow) -> CurvePoint:
    return _point(row, row.robust, row.robust_low, row.robust_high)


def _point(row: LeaderboardRow, value: float | None, low: float | None, high: float | None) -> CurvePoint:
    beta, read, flagged = known(row.beta), row.metric.read, bool(row.flags)
    if row.kind == "bounded":
        return CurvePoint(beta, read(known(value)), None, None, flagged)
    return CurvePoint(beta, read(known(value)), read(known(low)), read(known(high)), flagged)
