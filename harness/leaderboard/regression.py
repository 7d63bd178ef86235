"""The nightly gate: does a fresh run hold against a committed leaderboard? Pure.

A row has *moved* when images flipped. It has *regressed* when its clean or robust accuracy fell by more than chance
allows (an exact one-sided test on the flipped images, Holm over all rows, α = 0.01) or by more than a given number of
points; when it vanished; or when its weights (of a fit, what it was fitted from), its data or the number of activations
that its steering reaches have changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from harness.analysis.statistics import fell, flipped, holm
from harness.errors import LeaderboardError
from harness.leaderboard import outcomes
from harness.leaderboard.outcomes import ImageScores
from harness.leaderboard.row import LeaderboardRow, RowKey, known, rows_of

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.01
NOISE = 1e-3
"""A change of a graded outcome below this share of the spread of the committed outcomes is none."""

MUST_AGREE = (
    "family", "dataset", "metric", "threat", "eps", "attack", "protocol", "seed", "selection", "train",
    "parameters", "question",
)  # fmt: skip
"""Columns of the question: where one differs, the boards cannot be compared."""
HASHES = {"weights_sha256": "weights", "data_sha256": "data"}
FITTED = {"fitted_from": "backbone or the training images", "data_sha256": "data"}
"""Hashes of a row whose weights were fitted: on another machine a fit has other last bits, but its inputs have not."""

GateVerdict = Literal["held", "moved", "improved", "regressed"]


@dataclass(frozen=True)
class RowVerdict:
    """The verdict on one row.

    Args:
        key: identity of the row.
        verdict: all but "regressed" pass the gate.
        why: the reason, in a sentence.
        clean_pp: fresh less committed clean accuracy, in percentage points; None where there is nothing to compare.
        robust_pp: fresh less committed robust accuracy, likewise.
        flipped: number of images whose clean or robust score changed.
    """

    key: RowKey
    verdict: GateVerdict
    why: str
    clean_pp: float | None = None
    robust_pp: float | None = None
    flipped: int = 0

    @property
    def name(self) -> str:
        """Model and steering, or model and method."""
        return self.key.name


@dataclass(frozen=True)
class Board:
    """A leaderboard and its outcomes."""

    table: pd.DataFrame
    outcomes: pd.DataFrame


def check(fresh: Board, committed: Board, max_drop: float | None = None) -> list[RowVerdict]:
    """Hold ``fresh`` against ``committed``, row by row; rows that only the fresh board has are not judged.

    Args:
        fresh: the board that was just computed.
        committed: the board to hold it against.
        max_drop: percentage points that no accuracy may fall by, whatever chance allows.

    Raises:
        LeaderboardError: the boards do not answer the same question.
    """
    fresh_rows, committed_rows = rows_of(fresh.table), rows_of(committed.table)
    _same_question(fresh_rows, committed_rows)
    expected = {row.key: row for row in committed_rows if row.is_finished}
    found = {row.key: row for row in fresh_rows if row.is_finished or row.kind == "bounded"}
    before, after = outcomes.scores(committed.outcomes), outcomes.scores(fresh.outcomes)
    broken = {key: why for key in expected if (why := _broken(expected[key], found.get(key), fresh_rows))}
    judged = [key for key in expected if key not in broken]
    missing = [key for key in judged if key not in before or len(before[key][0]) != len(after[key][0])]
    if missing:
        raise LeaderboardError(
            f"{missing[0].name}: the committed outcome file has no outcomes of these images; "
            "accept a new one on purpose (--update)"
        )
    p_values = _p_values(judged, before, after)
    verdicts = {key: RowVerdict(key, "regressed", why) for key, why in broken.items()}
    for key in judged:
        verdict = _judge(key, before[key], after[key], p_values[key], max_drop)
        verdicts[key] = _pruned(verdict, found[key]) if found[key].kind == "bounded" else verdict
    return [verdicts[key] for key in expected]


def failed(rows: Sequence[RowVerdict]) -> bool:
    """Return whether any row regressed, so that the gate is shut."""
    return any(row.verdict == "regressed" for row in rows)


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


class _PValues(NamedTuple):
    """Holm-adjusted p of a fall and of a rise, the smaller of the clean and the robust one."""

    fall: float
    rise: float


def _p_values(
    keys: Sequence[RowKey], before: Mapping[RowKey, ImageScores], after: Mapping[RowKey, ImageScores]
) -> dict[RowKey, _PValues]:
    falls = holm([_by_chance(before[key][i], after[key][i]) for key in keys for i in (0, 1)])
    rises = holm([_by_chance(after[key][i], before[key][i]) for key in keys for i in (0, 1)])
    return {key: _PValues(min(falls[2 * n : 2 * n + 2]), min(rises[2 * n : 2 * n + 2])) for n, key in enumerate(keys)}


def _by_chance(before: np.ndarray, after: np.ndarray) -> float:
    """Return the probability of such a fall, or a larger one, by chance alone.

    Where answers are graded, float noise of a fit on another machine is no change.
    """
    if np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        return fell(int((after > before).sum()), int((after < before).sum()))
    change = after - before
    return flipped(np.where(np.abs(change) > NOISE * before.std(), change, 0.0), alternative="less")


def _pruned(verdict: RowVerdict, fresh: LeaderboardRow) -> RowVerdict:
    """Correct the verdict on a row whose fresh scores are bounds: their fall is a fall, and no more is known."""
    if verdict.verdict == "regressed":
        return verdict
    why = f"pruned at ≤ {known(fresh.robust):.1%}, another β being ahead"
    return RowVerdict(verdict.key, "moved", why, flipped=verdict.flipped)


def _judge(key: RowKey, before: ImageScores, after: ImageScores, p: _PValues, max_drop: float | None) -> RowVerdict:
    clean_pp, robust_pp = (100 * float(b.mean() - a.mean()) for a, b in zip(before, after, strict=True))
    changed = [np.abs(a - b) > NOISE * a.std() for a, b in zip(before, after, strict=True)]
    flips = int(np.any(changed, axis=0).sum())
    verdict: GateVerdict = "moved" if flips else "held"
    why = f"{flips} images flipped, as chance allows" if flips else "every image as before"
    if p.rise < ALPHA:
        verdict, why = "improved", f"rose by more than chance allows (p = {p.rise:.2g}, Holm)"
    if p.fall < ALPHA:
        verdict, why = "regressed", f"fell by more than chance allows (p = {p.fall:.2g}, Holm)"
    elif max_drop is not None and min(clean_pp, robust_pp) < -max_drop - 1e-9:
        verdict, why = "regressed", f"fell by more than {max_drop:g} points"
    return RowVerdict(key, verdict, why, clean_pp, robust_pp, flips)
