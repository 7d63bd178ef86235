"""Several boards, each of another data set, summed up: what does a method gain, and could it be chance? Pure.

Of each set, the accuracy a of a method (of CT that of the headline, so at a β that was chosen on other images) stands
against the accuracy b of the baseline on the same images. Over k sets, with d = 100 (a − b) points,

    difference     = mean d
    95 % of it     = mean d ± t(0.975; k − 1) s / √k, with s the standard deviation of d
    sign test      = twice the smaller tail of Binomial(won + lost, ½), at most 1; ties are left out
    relative gain  = mean 100 (a − b) / b percent

The last is what the Curvature Tuning paper reports (Hu et al. 2025, arXiv 2502.07783), and it misleads. Dividing by b
weights the sets with low baselines: a point counts ten times as much where b = 9 % as where b = 90 %, so one hard set
can carry the mean. The paper gives no spread over sets, and CT in its first version is chosen in sample, on the very
images that it is reported on. The other three weight all sets alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import scipy

from harness.analysis.metrics import of_row
from harness.analysis.statistics import mcnemar
from harness.errors import LeaderboardError
from harness.leaderboard import flags
from harness.leaderboard.csv_file import BOUNDED, CT, FAILED, IN_SAMPLE, LINEAR_PROBE, OK, SELECTED, UNTOUCHED
from harness.report.curves import is_number, models
from harness.report.html import render
from harness.report.table import TO
from harness.report.verdict import signed

if TYPE_CHECKING:
    import pandas as pd

ASKED = ("threat", "eps", "attack", "protocol", "family")
BASELINES = (LINEAR_PROBE, UNTOUCHED)
ANYONES = ("arrays", "image_folder")
"""Titles of data sets that do not say which images they are: their hash does."""


class Setting(NamedTuple):
    """What was asked of every set, as the columns of a board have it; and what everything is held against."""

    threat: str
    eps: str
    attack: str
    protocol: str
    family: str
    baseline: str

    @property
    def title(self) -> str:
        """The question in words: ``Linf, ε = 0.1 · standard · against the linear probe``."""
        asked = f"{self.threat}, ε = {self.eps}" if self.eps else self.threat
        against = "the linear probe" if self.baseline == LINEAR_PROBE else "the network untouched"
        protocol = f"protocol: {self.protocol}" if self.protocol != "pixel" else ""
        family = f"family: {self.family}" if self.family != "relu" else ""
        return " · ".join(filter(None, [asked, self.attack, protocol, family, f"against {against}"]))

    @property
    def base(self) -> str:
        """The heading of what everything is held against."""
        return "probe" if self.baseline == LINEAR_PROBE else self.baseline


class Gain(NamedTuple):
    """What one board found for one model and method: percent, and points against the baseline on the same images.

    Args:
        images: which data set it is; subsets of one are not told apart, since they overlap.
        dataset: its label, and the metric where that is not the plain accuracy.
        low: of the 95 % interval over images.
        p_value: of a headline.
        trained: numbers that were fitted; None where that is not known.
    """

    question: Setting
    model: str
    method: str
    images: str
    dataset: str
    board: str
    baseline: float
    accuracy: float
    delta: float
    low: float
    high: float
    p_value: float
    trained: int | None
    flags: tuple[str, ...]


class MethodSummary(NamedTuple):
    """One model and method over its sets.

    Args:
        sets: how many.
        of: how many there are of that model with any method.
        relative: mean relative gain in percent, as the paper has it; None where a baseline is 0.
        delta: mean difference in points.
        low: of its 95 % interval over sets; None where there is but one.
        p_value: of the sign test, adjusted for nothing.
        trained: fewest and most numbers that were fitted.
    """

    model: str
    method: str
    sets: int
    of: int
    baseline: float
    accuracy: float
    relative: float | None
    delta: float
    low: float | None
    high: float | None
    won: int
    tied: int
    lost: int
    p_value: float
    trained: tuple[int, int] | None


class SettingSummary(NamedTuple):
    """The rows of one question, and the gains behind them."""

    question: Setting
    rows: tuple[MethodSummary, ...]
    gains: tuple[Gain, ...]

    @property
    def boards(self) -> list[str]:
        """Those that answer it."""
        return sorted({gain.board for gain in self.gains})

    @property
    def columns(self) -> tuple[str, ...]:
        """What the cells of a row are; the first two are words."""
        return (
            "model", "method", "sets", self.question.base, "accuracy", "Δ pp", "95 % over sets", "won/tied/lost",
            "p (sign)", "relative gain %", "trained",
        )  # fmt: skip


class AcrossDatasets(NamedTuple):
    """The boards summed up; and a sentence for each thing that is left out."""

    groups: tuple[SettingSummary, ...]
    left_out: tuple[str, ...]


def sum_up(boards: Mapping[str, pd.DataFrame]) -> AcrossDatasets:
    """The boards by question, clean ones first; their order does not matter.

    Args:
        boards: each by its name.

    Raises:
        LeaderboardError: two of one question are of the same data set and model.
    """
    gains, left_out = [], []
    for name in sorted(boards):
        own, without = _of_board(name, boards[name])
        gains += own
        left_out += without or ([] if own else [f"{name}: has no headline and no method beside its baseline"])
    _independent(gains)
    by_question: dict[Setting, list[Gain]] = {}
    for gain in sorted(gains, key=lambda gain: (gain.question.threat != "clean", gain.question)):
        by_question.setdefault(gain.question, []).append(gain)
    return AcrossDatasets(
        tuple(SettingSummary(question, _rows(own), tuple(own)) for question, own in by_question.items()),
        tuple(dict.fromkeys(left_out)),
    )


def _of_board(name: str, table: pd.DataFrame) -> tuple[list[Gain], list[str]]:
    """What a board gives, and what it cannot give."""
    gains, left_out = [], []
    for model, rows in models(table).items():
        baseline = next((str(row["method"]) for row in rows if row["method"] in BASELINES), LINEAR_PROBE)
        for row in rows:
            if not _counts(row):
                continue
            if why := _unfit(row):
                left_out.append(f"{name}: {why}")
            else:
                gains.append(_gain(name, model, baseline, row))
    return gains, left_out


def _counts(row: Mapping[Any, Any]) -> bool:
    """Whether a row is more than a point of the grid: a headline, another method, or a failure."""
    status = str(row["status"])
    if status.startswith(FAILED) or status in (SELECTED, IN_SAMPLE):
        return True
    return status in (OK, BOUNDED) and row["method"] not in (CT, *BASELINES)


def _unfit(row: Mapping[Any, Any]) -> str:
    """Why a row is not averaged; empty where it is."""
    status, model = str(row["status"]), row["model"]
    if status.startswith(FAILED):
        return f"{model} was not scored ({status})"
    if not (metric := of_row(row)).is_share:
        return f"{row['dataset']} is measured in {metric.name}, which has no mean with accuracies"
    if status == IN_SAMPLE:
        return f"β of {model} was chosen in sample, on the images that it is reported on"
    if status == BOUNDED:
        return f"{row['method']} of {model} was given up, so its accuracy is only a bound"
    return ""


def _gain(board: str, model: str, baseline: str, row: Mapping[Any, Any]) -> Gain:
    threat, eps, attack, protocol, family = (str(row[column]) for column in ASKED)
    accuracy, delta = 100 * float(row["robust"]), round(float(row["delta_pp"]), 4)  # as the CSV has it: ties are 0
    metric = of_row(row).name
    title, label = str(row["dataset"]).partition("[")[0], str(row["dataset"])
    return Gain(
        question=Setting(threat, eps, attack, protocol, family, baseline),
        model=model,
        method=str(row["method"]),
        images=f"{title} {row['data_sha256']}" if title in ANYONES else title,
        dataset=label if metric == "accuracy" else f"{label} ({metric.replace('_', ' ')})",
        board=board,
        baseline=max(0.0, round(accuracy - delta, 4)),
        accuracy=accuracy,
        delta=delta,
        low=float(row["delta_low"]),
        high=float(row["delta_high"]),
        p_value=float(row["p_value"]),
        trained=int(row["trainable_parameters"]) if is_number(row["trainable_parameters"]) else None,
        flags=tuple(flag for flag in str(row["flags"]).split(";") if flag),
    )


def _independent(gains: Iterable[Gain]) -> None:
    """Refuse a data set that would count twice: sets must be independent, and a subset overlaps with another."""
    seen: dict[tuple[object, ...], Gain] = {}
    for gain in gains:
        other = seen.setdefault((gain.question, gain.images, gain.model, gain.method), gain)
        if other is not gain:
            raise LeaderboardError(
                f"{other.board} and {gain.board}: expected every board to be of another data set, found {gain.method} "
                f"of {gain.model} on {other.dataset} and on {gain.dataset} ({gain.question.title}); leave one of them "
                "out"
            )


def _rows(gains: Sequence[Gain]) -> tuple[MethodSummary, ...]:
    """One for each model and method; of a model CT first, then what trains the least."""
    found: dict[tuple[str, str], list[Gain]] = {}
    for gain in gains:
        found.setdefault((gain.model, gain.method), []).append(gain)
    sets = {model: len({gain.images for gain in gains if gain.model == model}) for model, _ in found}
    rows = (_row(own, sets[model]) for (model, _), own in found.items())
    return tuple(sorted(rows, key=lambda row: (row.model, row.method != CT, row.trained or (0, 0), row.method)))


def _row(gains: Sequence[Gain], of: int) -> MethodSummary:
    deltas = [gain.delta for gain in gains]
    won, lost = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    low, high = interval(deltas)
    trained = [gain.trained for gain in gains if gain.trained is not None]
    return MethodSummary(
        model=gains[0].model,
        method=gains[0].method,
        sets=len(gains),
        of=of,
        baseline=fmean(gain.baseline for gain in gains),
        accuracy=fmean(gain.accuracy for gain in gains),
        relative=relative(gains),
        delta=fmean(deltas),
        low=low,
        high=high,
        won=won,
        tied=len(gains) - won - lost,
        lost=lost,
        p_value=mcnemar(won, lost),  # the exact test of a fair coin, which the sign test is too
        trained=(min(trained), max(trained)) if trained else None,
    )


def interval(points: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of Student's t for the mean over k sets, mean ± t(0.975; k − 1) s / √k; none of a single set."""
    if len(points) < 2:
        return None, None
    half = float(scipy.stats.t.ppf(0.975, len(points) - 1)) * stdev(points) / sqrt(len(points))
    return fmean(points) - half, fmean(points) + half


def relative(gains: Sequence[Gain]) -> float | None:
    """Mean of 100 (a − b) / b in percent, which weights the sets whose baseline b is low; None where one is 0."""
    if any(gain.baseline == 0 for gain in gains):
        return None
    return fmean(100 * gain.delta / gain.baseline for gain in gains)


# --- as people read it ---


def cells(row: MethodSummary) -> tuple[str, ...]:
    """What stands in the columns of a `SettingSummary`; a dash where there is no number."""
    return (
        row.model,
        row.method,
        str(row.sets) if row.sets == row.of else f"{row.sets} of {row.of}",
        f"{row.baseline:.2f}",
        f"{row.accuracy:.2f}",
        signed(row.delta, 2),
        "–" if row.low is None or row.high is None else f"{signed(row.low, 2)}{TO}{signed(row.high, 2)}",
        f"{row.won}/{row.tied}/{row.lost}",
        f"{row.p_value:.2g}",
        "–" if row.relative is None else signed(row.relative, 2),
        "" if row.trained is None else TO.join(f"{count:,}" for count in dict.fromkeys(row.trained)),
    )


class DatasetLine(NamedTuple):
    """One model on one set: its board, the headline's flags, and the cells of `behind`."""

    model: str
    dataset: str
    board: str
    flags: tuple[str, ...]
    cells: tuple[str, ...]


def behind(group: SettingSummary) -> tuple[tuple[str, ...], tuple[DatasetLine, ...]]:
    """The sets behind the means: the headings of the cells, then a line for each model, set and board."""
    others = list(dict.fromkeys(row.method for row in group.rows if row.method != CT))
    found: dict[tuple[str, str, str], dict[str, Gain]] = {}
    for gain in group.gains:
        found.setdefault((gain.model, gain.images, gain.board), {})[gain.method] = gain
    heads = (group.question.base, "selected", "Δ", "95 % of Δ", "p", *(f"Δ {method}" for method in others))
    return heads, tuple(_line(found[key], others) for key in sorted(found))


def _line(by_method: Mapping[str, Gain], others: Iterable[str]) -> DatasetLine:
    headline = by_method.get(CT)
    one = headline or next(iter(by_method.values()))
    of_ct = ("", "", "", "") if headline is None else (
        f"{headline.accuracy:.1f}", signed(headline.delta), f"{signed(headline.low)}{TO}{signed(headline.high)}",
        f"{headline.p_value:.2g}",
    )  # fmt: skip
    deltas = (signed(by_method[method].delta) if method in by_method else "–" for method in others)
    met = tuple(dict.fromkeys(flag for gain in by_method.values() for flag in gain.flags))
    return DatasetLine(one.model, one.dataset, one.board, met, (f"{one.baseline:.1f}", *of_ct, *deltas))


def page(found: AcrossDatasets, links: Mapping[str, str] | None = None, pages: Mapping[str, str] | None = None) -> str:
    """The boards summed up as one page that needs no network.

    Args:
        found: from `sum_up`.
        links: names and addresses of what lies beside the page, where it is part of a site.
        pages: the addresses of the boards' pages, likewise.
    """
    return render(
        "several.html.j2",
        groups=[(group, [cells(row) for row in group.rows], *behind(group)) for group in found.groups],
        left_out=found.left_out,
        links=links or {},
        pages=pages or {},
        flags=flags.explained(_flags(found)),
    )


def _flags(found: AcrossDatasets) -> Iterator[str]:
    return (flag for group in found.groups for gain in group.gains for flag in gain.flags)
