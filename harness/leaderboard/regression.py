"""The nightly gate: does a fresh run hold against a committed leaderboard? Pure.

A row is *moved* when images flipped. It is *regressed* when its clean or robust accuracy fell by more than chance
allows (an exact one-sided test on the flipped images, Holm over all rows, α = 0.01) or by more than a given number of
points, when it vanished, or when its weights (of fitted ones, what they were fitted from), its data or the activations
that its steering reaches are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.analysis.statistics import fell, flipped, holm
from harness.errors import LeaderboardError
from harness.leaderboard import csv_file, outcomes
from harness.leaderboard.csv_file import BOUNDED, Key

if TYPE_CHECKING:
    import pandas as pd

ALPHA = 0.01
NOISE = 1e-3
"""As a share of the spread of the committed outcomes, a change of a graded one that is none."""

MUST_AGREE = (
    "family",
    "dataset",
    "metric",
    "threat",
    "eps",
    "attack",
    "protocol",
    "seed",
    "batch_size",
    "selection",
    "train",
)
"""What was asked: where it differs, the boards answer different questions."""
HASHES = {"weights_sha256": "weights", "data_sha256": "data"}
FITTED = {"fitted_from": "backbone or the training images", "data_sha256": "data"}
"""Of a row whose weights were fitted: a fit has other last bits on another machine, what it is made from has not."""

GateVerdict = Literal["held", "moved", "improved", "regressed"]


@dataclass(frozen=True)
class RowVerdict:
    """The verdict on one row.

    Args:
        key: what it is about.
        verdict: "improved" is reported and does not fail the gate.
        why: for the reader.
        clean_pp: fresh less committed, in percentage points; None where there is nothing to compare.
        robust_pp: likewise.
        flipped: images whose clean or robust score changed.
    """

    key: Key
    verdict: GateVerdict
    why: str
    clean_pp: float | None = None
    robust_pp: float | None = None
    flipped: int = 0

    @property
    def name(self) -> str:
        """Model and steering, or method."""
        return self.key.name


@dataclass(frozen=True)
class Board:
    """A leaderboard and its outcomes."""

    table: pd.DataFrame
    outcomes: pd.DataFrame


def check(fresh: Board, committed: Board, max_drop: float | None = None) -> list[RowVerdict]:
    """Hold ``fresh`` against ``committed``, row by row; rows that only the fresh board has are not judged.

    Args:
        fresh: just computed.
        committed: to be held.
        max_drop: percentage points that no accuracy may fall by, whatever chance allows.

    Raises:
        LeaderboardError: the boards do not answer the same question.
    """
    _same_question(fresh.table, committed.table)
    expected, pruned = csv_file.scored_rows(committed.table), csv_file.scored_rows(fresh.table, BOUNDED)
    found = csv_file.scored_rows(fresh.table) | pruned
    before, after = outcomes.scores(committed.outcomes), outcomes.scores(fresh.outcomes)
    broken = {key: why for key in expected if (why := _broken(key, expected[key], found, fresh.table))}
    judged = [key for key in expected if key not in broken]
    missing = [key for key in judged if key not in before or len(before[key][0]) != len(after[key][0])]
    if missing:
        raise LeaderboardError(
            f"the committed outcome file has no row that fits {missing[0]}; accept a new one (--update)"
        )
    significant = _significant(judged, before, after)
    rows = [RowVerdict(key, "regressed", why) for key, why in broken.items()]
    rows += [_judge(key, before[key], after[key], significant[key], max_drop) for key in judged]
    rows = [_pruned(row, pruned[row.key]) if row.key in pruned else row for row in rows]
    order = list(expected)
    return sorted(rows, key=lambda row: order.index(row.key))


def failed(rows: Sequence[RowVerdict]) -> bool:
    """Whether the gate is shut."""
    return any(row.verdict == "regressed" for row in rows)


Scores = tuple[np.ndarray, np.ndarray]


def _same_question(fresh: pd.DataFrame, committed: pd.DataFrame) -> None:
    for name in MUST_AGREE:
        values = [
            sorted({csv_file.written(value, name) for value in board[name]} - {""}) for board in (committed, fresh)
        ]
        if values[1] and values[0] != values[1]:  # nothing at all on the fresh board is a model that vanished
            raise LeaderboardError(
                f"{name}: the committed board has {', '.join(values[0])} and the benchmark {', '.join(values[1])}; "
                "they do not answer the same question: accept a new board on purpose (--update)"
            )


def _broken(key: Key, row: pd.Series, found: Mapping[Key, pd.Series], fresh: pd.DataFrame) -> str | None:
    if key not in found:
        status = fresh.loc[fresh["model"] == key.model, "status"]
        reasons = [text for text in status if text.startswith(csv_file.FAILED)]
        return reasons[0] if reasons else "the row vanished" if len(status) else "the model vanished"
    for column, what in (FITTED if row["fitted_from"] else HASHES).items():
        if row[column] != found[key][column]:
            return f"the {what} have another hash: {row[column][:12]} committed, {found[key][column][:12]} now"
    reach = [f"{one['steered']:.0f} of {one['sites']:.0f}" for one in (row, found[key])]
    return f"the steering reached {reach[0]} activations, now {reach[1]}" if reach[0] != reach[1] else None


def _significant(
    keys: Sequence[Key], before: Mapping[Key, Scores], after: Mapping[Key, Scores]
) -> dict[Key, tuple[list[float], list[float]]]:
    """For each row the Holm-adjusted p of a fall, and of a rise, of clean and of robust."""
    falls = [_by_chance(before[key][i], after[key][i]) for key in keys for i in (0, 1)]
    rises = [_by_chance(after[key][i], before[key][i]) for key in keys for i in (0, 1)]
    pairs = list(zip(holm(falls), holm(rises), strict=True))
    return {
        key: ([pairs[2 * n][0], pairs[2 * n + 1][0]], [pairs[2 * n][1], pairs[2 * n + 1][1]])
        for n, key in enumerate(keys)
    }


def _by_chance(before: np.ndarray, after: np.ndarray) -> float:
    """How likely is such a fall, or a larger one, by chance alone?

    Where answers are graded, what float noise does to a fit on another machine is no change.
    """
    if np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        return fell(int((after > before).sum()), int((after < before).sum()))
    change = after - before
    return flipped(np.where(np.abs(change) > NOISE * before.std(), change, 0.0), alternative="less")


def _pruned(row: RowVerdict, fresh: pd.Series) -> RowVerdict:
    """The verdict on a row whose fresh scores are only bounds: a fall of the bound is a fall, and no more is known."""
    if row.verdict == "regressed":
        return row
    return RowVerdict(
        row.key, "moved", f"given up at ≤ {fresh['robust']:.1%}, another β being ahead", flipped=row.flipped
    )


def _judge(
    key: Key, before: Scores, after: Scores, p: tuple[list[float], list[float]], max_drop: float | None
) -> RowVerdict:
    clean_pp, robust_pp = (100 * float(b.mean() - a.mean()) for a, b in zip(before, after, strict=True))
    changed = [np.abs(a - b) > NOISE * a.std() for a, b in zip(before, after, strict=True)]
    flipped = int(np.any(changed, axis=0).sum())
    verdict: GateVerdict = "moved" if flipped else "held"
    why = f"{flipped} images flipped, as chance allows" if flipped else "every image as before"
    falls, rises = p
    if min(rises) < ALPHA:
        verdict, why = "improved", f"more than chance allows (p = {min(rises):.2g}, Holm)"
    if min(falls) < ALPHA:
        verdict, why = "regressed", f"fell by more than chance allows (p = {min(falls):.2g}, Holm)"
    elif max_drop is not None and min(clean_pp, robust_pp) < -max_drop - 1e-9:
        verdict, why = "regressed", f"fell by more than {max_drop:g} points"
    return RowVerdict(key, verdict, why, clean_pp, robust_pp, flipped)
