"""The nightly gate: does a fresh run agree with a committed leaderboard? Pure.

A row has *moved* when images flipped. It has *regressed* when its clean or robust accuracy fell, or its robust accuracy
fell further below that against its own attack, by more than chance allows, or an accuracy by more than a given number
of points; when a flag of masked gradients was newly raised; when it vanished; or when its weights (of a fit, what it
was fitted from), its data or the number of activations that its steering reaches have changed. It has *risen* when an
accuracy rose by more than chance allows: a broken attack does the same.

Chance is judged over all rows at once (`harness.analysis.joint_test`), and over their sum, since a small change of
every row is seen in none alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness.analysis.joint_test import joint_p_values
from harness.analysis.statistics import REPEATS
from harness.errors import LeaderboardError
from harness.leaderboard import outcomes
from harness.leaderboard.flags import MASKING
from harness.leaderboard.row import LeaderboardRow, RowKey, known, rows_of

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.01
"""Share of the nights on which chance alone shuts the gate, at most."""
NOISE = 1e-3
"""A change of a graded outcome below this share of the spread of the committed outcomes is none."""

FELL = ("clean accuracy fell", "robust accuracy fell", "robust fell further below robust_aa")
ROSE = ("clean accuracy rose", "robust accuracy rose")
"""Changes of what is measured on each image: clean and robust score, and what the replay takes from the latter."""

MUST_AGREE = (
    "family", "dataset", "metric", "threat", "eps", "attack", "protocol", "seed", "selection", "train",
    "parameters", "question",
)  # fmt: skip
"""Columns of the question: where one differs, the boards cannot be compared."""
HASHES = {"weights_sha256": "weights", "data_sha256": "data"}
FITTED = {"fitted_from": "backbone or the training images", "data_sha256": "data"}
"""Hashes of a row whose weights were fitted: on another machine a fit has other last bits, but its inputs have not."""

GateVerdict = Literal["held", "moved", "accepted", "risen", "regressed"]
"""A rise is ``accepted`` where it was asked for."""
FAILING: tuple[GateVerdict, ...] = ("regressed", "risen")
TOGETHER = "all rows together"


@dataclass(frozen=True)
class RowVerdict:
    """The verdict on one row, or on all of them together.

    Args:
        name: model and steering, or model and method; `TOGETHER` for all rows.
        verdict: "regressed" and "risen" shut the gate.
        why: the reasons, in a sentence.
        clean_pp: fresh less committed clean accuracy, in percentage points; None where there is nothing to compare.
        robust_pp: fresh less committed robust accuracy, likewise.
        flipped: number of images whose outcome changed.
    """

    name: str
    verdict: GateVerdict
    why: str
    clean_pp: float | None = None
    robust_pp: float | None = None
    flipped: int = 0


@dataclass(frozen=True)
class Board:
    """A leaderboard and its outcomes."""

    table: pd.DataFrame
    outcomes: pd.DataFrame


def check(
    fresh: Board, committed: Board, max_drop: float | None = None, accept_gains: bool = False
) -> list[RowVerdict]:
    """Hold ``fresh`` against ``committed``, row by row; rows that only the fresh board has are not judged.

    Args:
        fresh: the board that was just computed.
        committed: the board to hold it against.
        max_drop: percentage points that no accuracy may fall by, whatever chance allows.
        accept_gains: whether a rise by more than chance allows passes.

    Returns:
        A verdict on each committed row and, where they have changed together as none has alone, one on all.

    Raises:
        LeaderboardError: the boards do not answer the same question.
    """
    fresh_rows, committed_rows = rows_of(fresh.table), rows_of(committed.table)
    _same_question(fresh_rows, committed_rows)
    expected = {row.key: row for row in committed_rows if row.is_finished}
    found = {row.key: row for row in fresh_rows if row.is_finished or row.kind == "bounded"}
    broken = {key: why for key in expected if (why := _broken(expected[key], found.get(key), fresh_rows))}
    verdicts = {key: RowVerdict(key.name, "regressed", why) for key, why in broken.items()}
    judged = [key for key in expected if key not in broken]
    if not judged:
        return list(verdicts.values())
    finished = np.array([found[key].is_finished for key in judged])
    *changes, together = _changes(committed, fresh, judged, finished)
    for key, change in zip(judged, changes, strict=True):
        verdicts[key] = _on_row(expected[key], found[key], change, max_drop, accept_gains)
    rows = [verdicts[key] for key in expected]
    alone = list(compress(changes, finished))
    fell = [] if any(change.fell() for change in alone) else together.fell()
    rose = [] if any(change.rose() for change in alone) else together.rose()
    return rows + ([_concluded(TOGETHER, together, fell, rose, [], accept_gains)] if fell or rose else [])


def failed(rows: Sequence[RowVerdict]) -> bool:
    """Return whether the gate is shut."""
    return any(row.verdict in FAILING for row in rows)


def gate_p_values(changed: np.ndarray, pooled: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """Return the p-value of each change of each row, and of their sums over rows, [rows + 1, measures].

    Args:
        changed: change of each image, [rows, measures, n].
        pooled: which rows are summed up, [rows].
        repeats: as in `harness.analysis.joint_test.joint_p_values`.
    """
    tests = np.concatenate([changed, changed[pooled].sum(axis=0, keepdims=True)])
    return joint_p_values(tests.reshape(-1, tests.shape[-1]), repeats).reshape(tests.shape[:2])


def _same_question(fresh: Sequence[LeaderboardRow], committed: Sequence[LeaderboardRow]) -> None:
    for column in MUST_AGREE:
        before, after = (sorted({row.written(column) for row in rows} - {""}) for rows in (committed, fresh))
        if after and before != after:  # nothing at all on the fresh board is a model that vanished
            raise LeaderboardError(
                f"{column}: the committed board has {', '.join(before)} and the benchmark {', '.join(after)}; "
                "they do not answer the same question: accept a new board on purpose (--update)"
            )


def _broken(row: LeaderboardRow, found: LeaderboardRow | None, fresh: Sequence[LeaderboardRow]) -> str | None:
    """Say why a row cannot be compared at all: it vanished, or it is of something else."""
    if found is None:
        own = [other for other in fresh if other.model == row.model]
        failures = [other.status for other in own if other.kind == "failed" and other.method in ("", row.method)]
        return failures[0] if failures else "the row vanished" if own else "the model vanished"
    for column, words in (FITTED if row.fitted_from else HASHES).items():
        before, after = row.written(column), found.written(column)
        if before != after:
            return f"the {words} have another hash: {before[:12]} committed, {after[:12]} now"
    reach = [f"{one.steered} of {one.sites}" for one in (row, found)]
    return f"the steering reached {reach[0]} activations, now {reach[1]}" if reach[0] != reach[1] else None


def _changes(committed: Board, fresh: Board, keys: Sequence[RowKey], finished: np.ndarray) -> list[_Change]:
    """Return what became of each row, and of the mean of the finished ones."""
    before, after = _measured(committed, keys), _measured(fresh, keys)
    if before.shape != after.shape:
        raise _no_outcomes(keys[0])
    exact, noise = np.nan_to_num(after - before), NOISE * before[:, [0, 1, 1]].std(axis=-1, keepdims=True)
    changed = np.where(np.abs(exact) > noise, exact, 0.0)
    p_values = gate_p_values(changed, finished)
    mean = exact[finished].sum(axis=0) / max(finished.sum(), 1)
    together = _Change(mean, changed[finished].any(axis=0), p_values[-1])
    return [*map(_Change, exact, changed, p_values[:-1]), together]


def _measured(board: Board, keys: Sequence[RowKey]) -> np.ndarray:
    """Return what is measured on each image, [rows, 3, n]; see `FELL`. What the replay takes is NaN where not known."""
    scores, own = outcomes.scores(board.outcomes), outcomes.own(board.outcomes)
    sizes = {key: len(scores[key][0]) if key in scores else 0 for key in keys}
    if odd := [key for key in keys if not sizes[key] or sizes[key] != sizes[keys[0]]]:
        raise _no_outcomes(odd[0])
    return np.array([[*scores[key], scores[key][1] - own.get(key, np.nan)] for key in keys])


def _no_outcomes(key: RowKey) -> LeaderboardError:
    return LeaderboardError(
        f"{key.name}: the committed outcome file has no outcomes of these images; "
        "accept a new one on purpose (--update)"
    )


class _Change(NamedTuple):
    """Change of a row, or of the mean row.

    Args:
        exact: fresh less committed, [3, n]; see `FELL`.
        beyond_noise: true or not 0 where that is no float noise, [3, n].
        p_values: p-value of each change, [3].
    """

    exact: np.ndarray
    beyond_noise: np.ndarray
    p_values: np.ndarray

    def fell(self) -> list[str]:
        """Return what fell by more than chance allows."""
        return self._beyond_chance(FELL, -1)

    def rose(self) -> list[str]:
        """Return what rose by more than chance allows; that the replay takes less is no news."""
        return self._beyond_chance(ROSE, 1)

    def _beyond_chance(self, names: Sequence[str], sign: int) -> list[str]:
        return [
            f"{name} by more than chance allows (p = {p:.2g})"
            for name, images, p in zip(names, self.exact, self.p_values, strict=False)
            if p < ALPHA and np.sign(images.sum()) == sign
        ]

    def dropped(self, max_drop: float | None) -> list[str]:
        """Return what fell by more points than are allowed."""
        if max_drop is None:
            return []
        return [
            f"{name} by more than {max_drop:g} points"
            for name, points in zip(FELL, self.points, strict=False)
            if points < -max_drop - 1e-9
        ]

    @property
    def points(self) -> tuple[float, float]:
        """Change of clean and robust accuracy, in percentage points."""
        clean, robust, _ = 100 * self.exact.mean(axis=1)
        return float(clean), float(robust)

    @property
    def flipped(self) -> int:
        """Number of images whose outcome changed."""
        return int(self.beyond_noise.any(axis=0).sum())


def _on_row(
    row: LeaderboardRow, found: LeaderboardRow, change: _Change, max_drop: float | None, accept_gains: bool
) -> RowVerdict:
    """Judge a row that can be compared; where it was pruned, its scores are bounds, of which only a fall is one."""
    raised = [flag for flag in found.flags if flag not in row.flags]
    worse = change.fell() + change.dropped(max_drop) + _new([flag for flag in raised if flag in MASKING])
    noted = _new([flag for flag in raised if flag not in MASKING])
    if found.is_finished:
        flips = [f"{change.flipped} images flipped, as chance allows"] if change.flipped else []
        return _concluded(row.key.name, change, worse, change.rose(), flips + noted, accept_gains)
    pruned = f"pruned at ≤ {known(found.robust):.1%}, another β being ahead"
    verdict = _concluded(row.key.name, change, worse, [], [pruned, *noted], accept_gains)
    return verdict if worse else replace(verdict, clean_pp=None, robust_pp=None)


def _new(flags: Sequence[str]) -> list[str]:
    return [f"newly raised: {', '.join(flags)}"] if flags else []


def _concluded(
    name: str, change: _Change, worse: list[str], better: list[str], noted: list[str], accept_gains: bool
) -> RowVerdict:
    rise: GateVerdict = "accepted" if accept_gains else "risen"
    verdict: GateVerdict = "regressed" if worse else rise if better else "moved" if noted else "held"
    why = "; ".join(worse + better or noted) or "every image as before"
    return RowVerdict(name, verdict, why, *change.points, change.flipped)
