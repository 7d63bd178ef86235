"""The leaderboard: from scores per image to ranked rows, and from rows to CSV and back.

The CSV has one row for each model and steering, best first within a model. Its columns and their formats are fixed,
so that computing it again gives the same bytes, the seconds aside.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import LeaderboardError
from harness.statistics import wilson
from harness.types import BASELINE, Coverage, Steering

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {
    "rank": "d", "model": "s", "beta": ".6g", "c": ".6g", "clean": ".6f", "robust": ".6f", "robust_low": ".6f",
    "robust_high": ".6f", "delta_pp": "+.4f", "status": "s", "sites": "d", "steered": "d", "n": "d", "dataset": "s",
    "threat": "s", "eps": "s", "attack": "s", "flags": "s", "seed": "d", "batch_size": "d", "weights_sha256": "s",
    "data_sha256": "s", "ct_harness": "s", "torch": "s", "device": "s", "seconds": ".1f",
}  # fmt: skip
"""The columns in their order, and how each is written."""

TEXT = [name for name, kind in FORMATS.items() if kind == "s"]


@dataclass(frozen=True)
class Score:
    """One model under one steering, image by image.

    Args:
        clean: of each image, float32 [n] in [0, 1].
        robust: likewise.
        flags: of all its cells.
        seconds: of all its cells.
        versions: ``ct_harness``, ``torch`` and ``device`` of its cells; several where they differ.
    """

    steering: Steering
    clean: np.ndarray
    robust: np.ndarray
    flags: frozenset[str]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """What the board says of one model: the columns that its rows share, and its scores, or why there are none."""

    shared: dict[str, str | int]
    scores: Sequence[Score] = ()
    coverage: Coverage | None = None
    failure: str | None = None
    flag: str | None = None


def board(entries: Iterable[Entry]) -> pd.DataFrame:
    """The leaderboard: models in the benchmark's order, each model's steerings best first."""
    import pandas as pd

    rows = [row for entry in entries for row in (_failed(entry) if entry.failure else _ranked(entry))]
    return pd.DataFrame(rows, columns=list(FORMATS))


def better(score: Score) -> tuple[float, float, float, float]:
    """Sorts the better score first: robust, then clean, then β nearest 1, then c nearest ½.

    The means are rounded, since images are summed in no particular order.
    """
    beta, c, _ = score.steering
    return (-round(score.robust.mean(), 9), -round(score.clean.mean(), 9), 1 - beta, abs(c - 0.5))


def _ranked(entry: Entry) -> list[dict[str, object]]:
    (baseline,) = (score for score in entry.scores if score.steering.is_baseline)
    ordered = sorted(entry.scores, key=better)
    return [_row(entry, score, baseline, rank) for rank, score in enumerate(ordered, start=1)]


def _row(entry: Entry, score: Score, baseline: Score, rank: int) -> dict[str, object]:
    n = len(score.robust)
    low, high = wilson(float(score.robust.sum()), n)
    assert entry.coverage is not None
    return (
        entry.shared
        | score.versions
        | {
            "rank": rank,
            "beta": score.steering.beta,
            "c": score.steering.c,
            "clean": float(score.clean.mean(dtype=np.float64)),
            "robust": float(score.robust.mean(dtype=np.float64)),
            "robust_low": low,
            "robust_high": high,
            "delta_pp": 100 * float(score.robust.mean(dtype=np.float64) - baseline.robust.mean(dtype=np.float64)),
            "status": "ok",
            "sites": entry.coverage.sites,
            "steered": entry.coverage.steered,
            "n": n,
            "flags": ";".join(sorted(score.flags)),
            "seconds": score.seconds,
        }
    )


def _failed(entry: Entry) -> list[dict[str, object]]:
    """One row that says why, in the baseline's place."""
    reason = " ".join(f"failed: {entry.failure}".split())
    return [entry.shared | {
        "beta": BASELINE.beta, "c": BASELINE.c, "status": reason, "flags": entry.flag or ""
    }]  # fmt: skip


def to_csv(table: pd.DataFrame) -> str:
    """The CSV text of a leaderboard: fixed columns, fixed number formats, one newline a line."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FORMATS)
    for row in table.to_dict("records"):
        writer.writerow(_cell(row[name], kind) for name, kind in FORMATS.items())
    return text.getvalue()


def _cell(value: object, kind: str) -> str:
    if value is None or (
        isinstance(value, float) and math.isnan(value)
    ):  # NaN: the rows of a failed model have no numbers
        return ""
    if kind == "d":
        return str(int(value))  # type: ignore[call-overload]
    return f"{value:{kind}}"


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the CSV, whole or not at all.

    Raises:
        LeaderboardError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        draft.write_text(to_csv(table), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise LeaderboardError(f"{path}: cannot be written: {error}; choose another place with --out") from error


def read(path: Path) -> pd.DataFrame:
    """A leaderboard from its CSV.

    Raises:
        LeaderboardError: the file is missing or is not a leaderboard.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values={
            name: [""] for name in FORMATS if name not in TEXT
        })  # fmt: skip
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path}: cannot be read as a leaderboard: {error}") from error
    missing = [name for name in FORMATS if name not in table.columns]
    if missing:
        raise LeaderboardError(f"{path}: not a leaderboard of this harness: no column {', '.join(missing)}")
    return table
