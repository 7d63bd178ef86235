"""The leaderboard: from scores per image to ranked rows, and from rows to CSV and back.

The CSV has one row for each model and steering, best first within a model. Its columns and their formats are fixed,
so that computing it again gives the same bytes, the seconds aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from harness.analysis.metrics import METRICS, Metric
from harness.analysis.selection import Choice, Scored, better
from harness.analysis.statistics import Paired, holm, interval, paired
from harness.api.records import Coverage, Steering
from harness.errors import LeaderboardError
from harness.util.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {
    "rank": "d", "model": "s", "method": "s", "beta": ".6g", "c": ".6g", "family": "s", "clean": ".6f", "robust": ".6f",
    "robust_low": ".6f", "robust_high": ".6f", "delta_pp": "+.4f", "delta_low": "+.4f", "delta_high": "+.4f",
    "gained": "d", "lost": "d", "p_value": ".4g", "p_holm": ".4g", "robust_replay": ".6f", "mce": ".4f",
    "published_clean": ".4f", "published_robust": ".4f", "status": "s", "selection": "s", "chosen": "s", "sites": "d",
    "steered": "d", "trainable_parameters": "d", "n": "d", "dataset": "s", "metric": "s", "threat": "s", "eps": "s",
    "attack": "s", "protocol": "s", "flags": "s", "seed": "d", "batch_size": "d", "weights_sha256": "s",
    "fitted_from": "s", "train": "s", "data_sha256": "s", "ct_harness": "s", "torch": "s", "device": "s",
    "seconds": ".1f",
}  # fmt: skip
"""The columns in their order, and how each is written."""

TEXT = [name for name, kind in FORMATS.items() if kind == "s"]

OK, BOUNDED, SELECTED, IN_SAMPLE, FAILED = "ok", "bounded", "selected", "in-sample", "failed"
"""What ``status`` begins with: a point of the grid; one that was given up, with what it can be at most; the headline;
the headline that is not to be trusted; no score."""

CT, UNTOUCHED, LINEAR_PROBE = "ct", "untouched", "linear_probe"
"""What ``method`` is of a steering; of the baseline, as it came or with a probe on it. Others name themselves."""
OWN = (CT, UNTOUCHED, LINEAR_PROBE)


@dataclass(frozen=True)
class Score(Scored):
    """One model under one steering, image by image; `Scored` has the clean and robust scores.

    Args:
        complete: whether every stage was run; otherwise the scores are what they can be at most.
        stages: what stands after each stage, in order, the clean one first; float32 [n] each, NaN where it was not run.
        summary_columns: further columns, of the threat.
        replay: `robust` when the images found under other steerings count too, [n]; None where there are none.
        flags: of all its cells, and of these scores.
        seconds: of all its cells.
        versions: ``ct_harness``, ``torch``, ``device`` and ``weights_sha256`` of its cells; several where they differ.
    """

    complete: bool
    stages: Mapping[str, np.ndarray]
    summary_columns: Mapping[str, float]
    replay: np.ndarray | None
    flags: frozenset[str]
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Headline:
    """What choosing β gives.

    Args:
        name: the procedure, ``cross_validation:5``.
        choice: the β for each fold, and the images that it is reported on.
        gain: of the procedure over the baseline on the same images.
        status: `SELECTED` or `IN_SAMPLE`.
    """

    name: str
    choice: Choice
    gain: Paired
    status: str


@dataclass(frozen=True)
class ModelEntry:
    """What the board says of one model: the columns that its rows share, and its scores, or why there are none.

    Args:
        trainable: how many numbers are fitted, by method; "" is that of the steerings.
    """

    shared: dict[str, object]
    scores: Sequence[Score] = ()
    headline: Headline | None = None
    coverage: Coverage | None = None
    trainable: Mapping[str, int] = field(default_factory=lambda: {"": 0})
    metric: Metric = METRICS["class"]
    failure: str | None = None
    flag: str | None = None


def board(entries: Iterable[ModelEntry]) -> pd.DataFrame:
    """The leaderboard: models in the benchmark's order; of each the headline, then its steerings, best first."""
    import pandas as pd

    rows = [row for entry in entries for row in (_failed(entry) if entry.failure else _scored(entry))]
    return pd.DataFrame(rows, columns=list(FORMATS))


def _scored(entry: ModelEntry) -> list[dict[str, object]]:
    (baseline,) = (score for score in entry.scores if score.steering.is_baseline)
    ordered = sorted(entry.scores, key=_rank)
    gains = {score.steering: paired(baseline.robust, score.robust) for score in ordered if score.complete}
    p_holm = _adjusted(gains, ordered)
    rows = [
        (_row(entry, score, score.replay, gains[score.steering]) if score.complete else _bounded(entry, score))
        | score.versions
        | dict(score.summary_columns)
        | {
            "rank": rank,
            "method": method_of(entry, score.steering),
            "trainable_parameters": entry.trainable[score.steering.method],
            "beta": score.steering.beta,
            "c": score.steering.c,
            "p_holm": p_holm.get(score.steering),
            "status": OK if score.complete else BOUNDED,
            "flags": ";".join(sorted(score.flags)),
            "seconds": score.seconds,
        }
        for rank, score in enumerate(ordered, start=1)
    ]
    return [_headline(entry, entry.headline, baseline), *rows] if entry.headline else rows


def method_of(entry: ModelEntry, steering: Steering) -> str:
    """How the network of a row came about, in the column ``method``."""
    if steering.is_baseline:
        return LINEAR_PROBE if entry.trainable[""] else UNTOUCHED
    return steering.method or CT


def _rank(score: Score) -> tuple[float, ...]:
    """Best first; of equal accuracies one that is only a bound comes last."""
    robust, *rest = better(score)
    return (robust, not score.complete, *rest)


def _adjusted(gains: Mapping[Steering, Paired], scores: Sequence[Score]) -> dict[Steering, float]:
    """Holm's p over the steerings, and over the other methods; what was given up counts as if it showed nothing."""
    compared = [score.steering for score in scores if not score.steering.is_baseline]
    adjusted: dict[Steering, float] = {}
    for methods in (False, True):
        family = [steering for steering in compared if bool(steering.method) == methods]
        known = {steering: gains[steering].p_value for steering in family if steering in gains}
        adjusted |= zip(known, holm([*known.values(), *[1.0] * (len(family) - len(known))]), strict=False)
    return adjusted


def _headline(entry: ModelEntry, headline: Headline, baseline: Score) -> dict[str, object]:
    """The accuracy of the procedure that chooses β, beside the baseline on the same images."""
    choice = headline.choice
    clean, robust = choice.scores(entry.scores)
    steerings = set(choice.chosen)
    used = [score for score in entry.scores if score.steering in steerings]
    replayed = [replace(score, robust=score.replay) for score in used if score.replay is not None]
    replay = choice.scores(replayed)[1] if len(replayed) == len(used) else None
    only = used[0].steering if len(used) == 1 else None
    return (
        _row(entry, Scored(baseline.steering, clean, robust), replay, headline.gain)
        | baseline.versions
        | {
            "method": CT,
            "trainable_parameters": entry.trainable[""],
            "weights_sha256": "+".join(sorted({score.versions["weights_sha256"] for score in used})),
            "beta": only.beta if only else None,
            "c": only.c if only else None,
            "status": headline.status,
            "selection": headline.name,
            "chosen": ";".join(map(_short, choice.chosen)),
            "flags": ";".join(sorted({flag for score in used for flag in score.flags})),
        }
    )


def _bounded(entry: ModelEntry, scored: Scored) -> dict[str, object]:
    """The numbers of a row that was given up: what its accuracies can be at most."""
    assert entry.coverage is not None
    return entry.shared | {
        "metric": entry.metric.name,
        "clean": entry.metric.shown(float(scored.clean.mean(dtype=np.float64))),
        "robust": entry.metric.shown(float(scored.robust.mean(dtype=np.float64))),
        "sites": entry.coverage.sites,
        "steered": entry.coverage.steered,
        "n": len(scored.robust),
    }


def _row(entry: ModelEntry, scored: Scored, replay: np.ndarray | None, against: Paired) -> dict[str, object]:
    """The numbers of any finished row, with the comparison with the baseline on the same images."""
    shown, ends = entry.metric.shown, entry.metric.interval
    low, high = ends(*interval(scored.robust, graded=entry.metric is not METRICS["class"]))
    delta_low, delta_high = ends(against.low, against.high)
    return _bounded(entry, scored) | {
        "robust_low": low,
        "robust_high": high,
        "delta_pp": 100 * shown(against.delta),
        "delta_low": 100 * delta_low,
        "delta_high": 100 * delta_high,
        "gained": against.gained,
        "lost": against.lost,
        "p_value": against.p_value,
        "robust_replay": None if replay is None else shown(float(replay.mean(dtype=np.float64))),
    }


def _short(steering: Steering) -> str:
    return f"{steering.beta:g}" if steering.c == 0.5 else f"{steering.beta:g}/{steering.c:g}"


def _failed(entry: ModelEntry) -> list[dict[str, object]]:
    """One row that says why."""
    reason = " ".join(f"{FAILED}: {entry.failure}".split())
    return [{**entry.shared, "status": reason, "flags": entry.flag or ""}]


def to_csv(table: pd.DataFrame) -> str:
    """The CSV text of a leaderboard: fixed columns, fixed number formats, one newline a line."""
    lines = [",".join(FORMATS)]
    for row in table.to_dict("records"):
        lines.append(",".join(_quoted(written(row[name], name)) for name in FORMATS))
    return "\n".join(lines) + "\n"


def written(value: object, column: str) -> str:
    """A value as the CSV has it, whether it was just computed or read from one."""
    kind = FORMATS[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):  # a failed model has no numbers
        return ""
    if kind == "d":
        return str(int(value))  # type: ignore[call-overload]
    return f"{value:{kind}}"


def _quoted(text: str) -> str:
    """As in RFC 4180; Python's csv leaves a lone carriage return bare, and readers break the row there."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


class Key(NamedTuple):
    """What a row is about."""

    model: str
    method: str
    beta: float
    c: float

    @property
    def name(self) -> str:
        """In words: the model, and the steering or the other method."""
        if self.method not in OWN:
            return f"{self.model} {self.method}"
        return f"{self.model} β={self.beta:g}" + ("" if self.c == 0.5 else f" c={self.c:g}")


def key_of(row: Mapping[Any, Any]) -> Key:
    """What a row of the grid is about."""
    return Key(str(row["model"]), str(row["method"]), float(row["beta"]), float(row["c"]))


def scored_rows(table: pd.DataFrame, status: str = OK) -> dict[Key, pd.Series]:
    """The rows of the grid: those that were finished, or those that are `BOUNDED`."""
    return {key_of(row): row for _, row in table[table["status"] == status].iterrows()}  # type: ignore[arg-type]


def write(table: pd.DataFrame, path: Path) -> None:
    """Write the CSV, whole or not at all.

    Raises:
        LeaderboardError: the folder cannot be written.
    """
    write_whole(path, to_csv(table))


def read(path: Path) -> pd.DataFrame:
    """A leaderboard from its CSV.

    Raises:
        LeaderboardError: the file is missing or is not a leaderboard.
    """
    import pandas as pd

    try:
        table = pd.read_csv(
            path,
            dtype={name: str if name in TEXT else float for name in FORMATS},
            keep_default_na=False,
            na_values={name: [""] for name in FORMATS if name not in TEXT},
        )
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path}: cannot be read as a leaderboard: {error}") from error
    missing = [name for name in FORMATS if name not in table.columns]
    if missing:
        raise LeaderboardError(f"{path}: not a leaderboard of this harness: no column {', '.join(missing)}")
    return table
