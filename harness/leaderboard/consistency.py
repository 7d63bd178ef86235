"""Do the rows of a board follow from its outcome file? What was edited, cut or mixed does not. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.metrics import METRICS
from harness.analysis.statistics import Paired, interval, paired
from harness.errors import LeaderboardError
from harness.leaderboard import outcomes
from harness.leaderboard.outcomes import ImageScores
from harness.leaderboard.row import LeaderboardRow, RowKey, as_chosen, baseline_of, by_model, known

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[RowKey, ImageScores]

TOLERANCE = 2e-6
"""Difference of two means that is rounding, relative to the largest score or to 1: the board has six decimals, and
graded outcomes seven digits."""


def check_rows(rows: Sequence[LeaderboardRow]) -> None:
    """Refuse rows that are no board, whatever their outcomes are.

    Raises:
        LeaderboardError: a row is there twice, or a model has no baseline.
    """
    grid = [row for row in rows if not row.is_headline and row.kind != "failed"]
    for key, times in Counter(row.key for row in grid).items():
        if times > 1:
            raise LeaderboardError(f"{key.name}: expected one row, found {times}{AGAIN}")
    for own in by_model(row for row in rows if row.kind != "failed").values():
        baseline_of(own)


def check(rows: Sequence[LeaderboardRow], table: pd.DataFrame) -> None:
    """Hold every row against the outcomes of its images.

    Args:
        rows: the rows of a board.
        table: its outcome file.

    Raises:
        LeaderboardError: a row has no outcomes, or says something else than they do.
    """
    scores, own_attack = outcomes.scores(table), outcomes.own(table)
    found = {row.key for row in rows if not row.is_headline and row.kind != "failed"}
    if left := [key for key in scores if key not in found]:
        raise LeaderboardError(
            f"{left[0].name}: expected a row, which the outcome file has outcomes of, found none{AGAIN}"
        )
    for own in by_model(row for row in rows if row.kind != "failed").values():
        grid = [row for row in own if not row.is_headline]
        _all_alike(grid, scores)
        before = scores[baseline_of(own).key][1]
        for place, row in enumerate(grid, start=1):
            against = own_attack.get(baseline_of(own).key, before) if row.is_adapted else before
            _hold(row, dict(_of_row(row, scores, against)) | _of_place(row, place, own_attack))
        for row in own:
            if row.is_headline:
                _hold(row, dict(_of_headline(row, _chosen(row, grid, scores), before)))


def _all_alike(grid: Sequence[LeaderboardRow], scores: Scores) -> None:
    """Refuse rows that do not have outcomes of equally many images each."""
    for row in grid:
        if row.key not in scores:
            raise LeaderboardError(f"{row.key.name}: the outcome file has no outcomes of this row{AGAIN}")
    sizes = {len(scores[row.key][1]) for row in grid}
    if len(sizes) > 1:
        raise LeaderboardError(
            f"{grid[0].model}: expected outcomes of as many images in every row, found {sizes}{AGAIN}"
        )


def _chosen(row: LeaderboardRow, grid: Sequence[LeaderboardRow], scores: Scores) -> list[ImageScores]:
    """Return the scores under each steering that a headline has chosen."""
    by_name = {as_chosen(known(other.beta), known(other.c)): other.key for other in grid if not other.is_adapted}
    if unknown := [name for name in row.chosen if name not in by_name]:
        raise LeaderboardError(f"{row.model}: chosen: expected steerings of the board, found {unknown[0]}{AGAIN}")
    return [scores[by_name[name]] for name in row.chosen]


AGAIN = "; run the benchmark again, or restore both files"

Range = tuple[float, float]
"""Least and most that a value may be."""


def _hold(row: LeaderboardRow, expected: Mapping[str, Range]) -> None:
    for column, (low, high) in expected.items():
        found = getattr(row, column)
        if found is not None and not low <= found <= high:
            what = row.written(column)
            name = f"{row.model} {row.status}" if row.is_headline else row.key.name
            wanted = f"{low:.6g}" if math.isclose(low, high, abs_tol=1e-3) else f"{low:.6g} … {high:.6g}"
            raise LeaderboardError(
                f"{name}: {column}: expected {wanted}, which follows from the outcome file, found {what}{AGAIN}"
            )


def _of_row(row: LeaderboardRow, scores: Scores, before: np.ndarray) -> Iterator[tuple[str, Range]]:
    """Yield what the numbers of a row of the grid must be."""
    clean, robust = scores[row.key]
    shown, graded = row.metric.shown, row.metric is not METRICS["class"]
    rounding = _rounding(clean, robust, before)
    yield "n", (len(robust), len(robust))
    yield "clean", about(shown(float(clean.mean())), rounding)
    yield "robust", about(shown(float(robust.mean())), rounding)
    if row.is_finished:
        low, high = row.metric.interval(*interval(robust, graded))
        yield from (("robust_low", about(low, rounding)), ("robust_high", about(high, rounding)))
        yield from _of_gain(row, paired(before, robust), rounding)


def _rounding(*scores: np.ndarray) -> float:
    """Return the difference of means of these scores that is rounding."""
    return TOLERANCE * max(1.0, *(float(np.abs(values).max()) for values in scores))


def _of_place(row: LeaderboardRow, place: int, own: Mapping[RowKey, np.ndarray]) -> dict[str, Range]:
    """Return what follows from the order of the rows, which is that of the ranks, and from the own attack."""
    found = own.get(row.key)
    against_own = {} if found is None else {"robust_aa": about(row.metric.shown(float(found.mean())), _rounding(found))}
    return {"rank": (place, place)} | against_own


def _of_gain(row: LeaderboardRow, gain: Paired, rounding: float) -> Iterator[tuple[str, Range]]:
    low, high = row.metric.interval(gain.low, gain.high)
    points = {"delta_pp": row.metric.shown(gain.delta), "delta_low": low, "delta_high": high}
    yield from ((column, about(100 * value, 100 * rounding)) for column, value in points.items())
    if row.metric is METRICS["class"]:  # of graded outcomes, the file has rounded ones
        yield "p_value", (0.999 * gain.p_value, 1.001 * gain.p_value)
    yield from (("gained", (gain.gained, gain.gained)), ("lost", (gain.lost, gain.lost)))


def _of_headline(row: LeaderboardRow, chosen: Sequence[ImageScores], before: np.ndarray) -> Iterator[tuple[str, Range]]:
    """Yield what follows for a headline: each image has the score of one of the β that were chosen."""
    yield "n", (1, len(before))
    if row.n != len(before) or not chosen:  # on some of the images, and the files do not say on which
        return
    for column, which in (("clean", 0), ("robust", 1)):
        values = np.array([scores[which] for scores in chosen])
        ends = (row.metric.shown(float(end(values, axis=0).mean())) for end in (np.min, np.max))
        low, high = sorted(ends)
        yield column, (low - _rounding(values), high + _rounding(values))
    gain = known(row.robust) - row.metric.shown(float(before.mean()))
    yield "delta_pp", about(100 * gain, 200 * _rounding(before, values))


def about(value: float, tolerance: float = TOLERANCE) -> Range:
    """Return the range of values that are ``value`` but for rounding."""
    return value - tolerance, value + tolerance
