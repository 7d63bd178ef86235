"""Several boards, each of another dataset, summed up: how much does a method gain, and could it be chance? Pure.

On each dataset, a is the accuracy of a method (for CT the headline's, so at a β that was chosen on other images) and b
that of the baseline on the same images. Over k datasets, with d = 100 (a − b) points,

    difference     = mean d
    95 % of it     = mean d ± t(0.975; k − 1) s / √k, with s the standard deviation of d
    sign test      = twice the smaller tail of Binomial(won + lost, ½), at most 1; ties are left out
    relative gain  = mean 100 (a − b) / b percent

The Curvature Tuning paper reports the last one (Hu et al. 2025, arXiv 2502.07783), and it misleads. Dividing by b
weights the datasets with low baselines: a point counts ten times as much where b = 9 % as where b = 90 %, so one hard
dataset can carry the mean. The paper gives no spread over datasets, and in its first version β is chosen in sample, on
the very images that it is reported on. The other three weight all datasets alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

import scipy

from harness.analysis.metrics import spoken
from harness.analysis.statistics import mcnemar
from harness.errors import LeaderboardError
from harness.leaderboard.question import told
from harness.leaderboard.row import BASELINES, CT, LINEAR_PROBE, LeaderboardRow, by_model, known
from harness.util.batching import grouped

VERSIONS = ("", "standard", "plus", "rand")
"""Attacks whose name says all of their parameters."""
ANYONES = ("arrays", "image_folder")
"""Names of datasets that do not say which images they hold: the hash of the images does."""


class Setting(NamedTuple):
    """The columns of a board that must agree between datasets, and the baseline that methods are compared with."""

    threat: str
    eps: str
    attack: str
    protocol: str
    family: str
    baseline: str
    parameters: str = ""

    @property
    def title(self) -> str:
        """The setting in words: ``Linf, ε = 0.1 · standard · against the linear probe``."""
        custom = "" if self.attack in VERSIONS else told(self.parameters)
        threat = f"{self.threat}, ε = {self.eps}" if self.eps else self.threat
        against = "the linear probe" if self.baseline == LINEAR_PROBE else "the network untouched"
        protocol = f"protocol: {self.protocol}" if self.protocol != "pixel" else ""
        family = f"family: {self.family}" if self.family != "relu" else ""
        return " · ".join(filter(None, [threat, self.attack, custom, protocol, family, f"against {against}"]))


class DatasetGain(NamedTuple):
    """Gain of one method over the baseline, for one model on the images of one board.

    Args:
        setting: columns that must agree between datasets.
        model: label of the model.
        method: ``ct``, or another method.
        images: identity of the dataset; its subsets are not told apart, since they overlap.
        dataset: label of the dataset, with the metric where that is not the plain accuracy.
        board: name of the board.
        baseline: accuracy of the baseline in percent.
        accuracy: accuracy of the method in percent.
        delta: gain in percentage points.
        low: lower end of its 95 % interval over images.
        high: upper end.
        p_value: of the paired test over images.
        trained: number of fitted parameters; None where it is not known.
        flags: flags of the row.
    """

    setting: Setting
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
    """One model and method over its datasets.

    Args:
        model: label of the model.
        method: ``ct``, or another method.
        sets: number of datasets.
        of: number of datasets on which the model has any method.
        baseline: mean accuracy of the baseline in percent.
        accuracy: mean accuracy of the method in percent.
        relative: mean relative gain in percent, as in the paper; None where a baseline is 0.
        delta: mean gain in percentage points.
        low: lower end of its 95 % interval over datasets; None where there is but one.
        high: upper end, likewise.
        won: number of datasets with a gain.
        tied: number of datasets with neither.
        lost: number of datasets with a loss.
        p_value: of the sign test, not adjusted for the number of methods.
        trained: smallest and largest number of fitted parameters; None where they are not known.
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
    """All methods under one setting, and the gains they are summed up from."""

    setting: Setting
    methods: tuple[MethodSummary, ...]
    gains: tuple[DatasetGain, ...]

    @property
    def boards(self) -> list[str]:
        """Names of the boards under this setting."""
        return sorted({gain.board for gain in self.gains})


class AcrossDatasets(NamedTuple):
    """Boards summed up by setting, and a sentence for each thing that is left out."""

    settings: tuple[SettingSummary, ...]
    left_out: tuple[str, ...]


def sum_up(boards: Mapping[str, Sequence[LeaderboardRow]]) -> AcrossDatasets:
    """Sum up boards by setting, those without a threat first; the order of the boards does not matter.

    Args:
        boards: rows of each board by its name.

    Raises:
        LeaderboardError: two boards under one setting have the same dataset and model.
    """
    gains, left_out = [], []
    for name in sorted(boards):
        found, excluded = _of_board(name, boards[name])
        gains += found
        left_out += excluded or ([] if found else [f"{name}: has no headline and no method beside its baseline"])
    _refuse_dependent(gains)
    ordered = sorted(gains, key=lambda gain: (gain.setting.threat != "clean", gain.setting))
    by_setting = grouped(ordered, lambda gain: gain.setting)
    return AcrossDatasets(
        tuple(SettingSummary(setting, _summaries(found), tuple(found)) for setting, found in by_setting.items()),
        tuple(dict.fromkeys(left_out)),
    )


def _of_board(name: str, rows: Sequence[LeaderboardRow]) -> tuple[list[DatasetGain], list[str]]:
    """Return the gains of a board, and a sentence for each row that gives none."""
    gains, left_out = [], []
    for own in by_model(rows).values():
        baseline = next((row.method for row in own if row.method in BASELINES), LINEAR_PROBE)
        for row in own:
            if row.is_headline or row.is_adapted or row.kind == "failed":
                if why := _exclusion(row):
                    left_out.append(f"{name}: {why}")
                else:
                    gains.append(_gain(name, baseline, row))
    return gains, left_out


def _exclusion(row: LeaderboardRow) -> str:
    """Say why a row is not averaged; empty where it is."""
    if row.kind == "failed":
        return f"{f'{row.model} {row.method}'.strip()} was not scored ({row.status})"
    if not row.metric.is_share:
        return f"{row.dataset} is measured in {row.metric.name}, which has no mean with accuracies"
    if row.kind == "in_sample":
        return f"β of {row.model} was chosen in sample, on the images that it is reported on"
    if row.kind == "untrusted":
        return f"{row.model} shows signs of gradient masking ({', '.join(row.flags)})"
    if row.kind == "bounded":
        return f"{row.method} of {row.model} was pruned, so its accuracy is only a bound"
    return ""


def _gain(board: str, baseline: str, row: LeaderboardRow) -> DatasetGain:
    accuracy, delta = 100 * known(row.robust), round(known(row.delta_pp), 4)  # as the CSV has it: ties are 0
    name = row.dataset.partition("[")[0]
    return DatasetGain(
        setting=Setting(row.threat, row.eps, row.attack, row.protocol, row.family, baseline, row.parameters),
        model=row.model,
        method=row.method,
        images=f"{name} {row.data_sha256}" if name in ANYONES else name,
        dataset=row.dataset if row.metric.name == "accuracy" else f"{row.dataset} ({spoken(row.metric)})",
        board=board,
        baseline=max(0.0, round(accuracy - delta, 4)),
        accuracy=accuracy,
        delta=delta,
        low=known(row.delta_low),
        high=known(row.delta_high),
        p_value=known(row.p_value),
        trained=row.trainable_parameters,
        flags=row.flags,
    )


def _refuse_dependent(gains: Iterable[DatasetGain]) -> None:
    """Refuse a dataset that would count twice: datasets must be independent, and a subset overlaps with another."""
    seen: dict[tuple[object, ...], DatasetGain] = {}
    for gain in gains:
        other = seen.setdefault((gain.setting, gain.images, gain.model, gain.method), gain)
        if other is not gain:
            raise LeaderboardError(
                f"{other.board} and {gain.board}: expected every board to be of another dataset, found {gain.method} "
                f"of {gain.model} on {other.dataset} and on {gain.dataset} ({gain.setting.title}); leave one of them "
                "out"
            )


def _summaries(gains: Sequence[DatasetGain]) -> tuple[MethodSummary, ...]:
    """Sum up each model and method; of a model CT first, then the method that trains the least."""
    found = grouped(gains, lambda gain: (gain.model, gain.method))
    sets = {model: len({gain.images for gain in gains if gain.model == model}) for model, _ in found}
    methods = (_summary(own, sets[model]) for (model, _), own in found.items())
    return tuple(sorted(methods, key=lambda one: (one.model, one.method != CT, one.trained or (0, 0), one.method)))


def _summary(gains: Sequence[DatasetGain], of: int) -> MethodSummary:
    deltas = [gain.delta for gain in gains]
    won, lost = sum(delta > 0 for delta in deltas), sum(delta < 0 for delta in deltas)
    low, high = t_interval(deltas)
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


def t_interval(points: Sequence[float]) -> tuple[float | None, float | None]:
    """Return Student's 95 % interval for the mean of k numbers, mean ± t(0.975; k − 1) s / √k; none where k is 1."""
    if len(points) < 2:
        return None, None
    half = float(scipy.stats.t.ppf(0.975, len(points) - 1)) * stdev(points) / sqrt(len(points))
    return fmean(points) - half, fmean(points) + half


def relative(gains: Sequence[DatasetGain]) -> float | None:
    """Return the mean of 100 (a − b) / b in percent, which weights low baselines b; None where one is 0."""
    if any(gain.baseline == 0 for gain in gains):
        return None
    return fmean(100 * gain.delta / gain.baseline for gain in gains)
