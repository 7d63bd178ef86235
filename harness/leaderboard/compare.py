"""Two leaderboards, or one with itself: what changed, by how much, and could it be chance? Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.analysis.metrics import METRICS, of_row
from harness.analysis.statistics import paired, unpaired
from harness.leaderboard import csv_file, outcomes
from harness.leaderboard.csv_file import Key

if TYPE_CHECKING:
    import pandas as pd

WITHIN = (
    "model", "metric", "status", "chosen", "robust", "baseline", "delta_pp", "delta_low", "delta_high", "gained",
    "lost", "p_value", "flags",
)  # fmt: skip
BETWEEN = (
    "model",
    "method",
    "beta",
    "c",
    "metric",
    "clean_pp",
    "robust_pp",
    "low",
    "high",
    "gained",
    "lost",
    "p_value",
    "test",
)

SAME_THREAT = ("metric", "threat", "eps", "attack", "protocol")
"""Columns without whose equality robust accuracies do not mean the same."""
NOISE = ("family", "seed", "batch_size", "weights_sha256", "ct_harness", "torch", "device")
"""Columns whose difference is named, and does not stop a comparison."""


def within(board: pd.DataFrame) -> pd.DataFrame:
    """Each model's selected β against its baseline, on the same images; columns `WITHIN`."""
    import pandas as pd

    headlines = board[board["status"].isin([csv_file.SELECTED, csv_file.IN_SAMPLE])].copy()
    headlines["baseline"] = headlines["robust"] - headlines["delta_pp"] / 100
    return pd.DataFrame(headlines, columns=list(WITHIN)).reset_index(drop=True)


@dataclass(frozen=True)
class Comparison:
    """Two boards, row by row.

    Args:
        rows: the columns `BETWEEN`; differences are second less first, in percentage points.
        differences: in what the boards differ, a sentence each, and what that means for the comparison.
        only_first: rows that only the first board has.
        only_second: likewise.
    """

    rows: pd.DataFrame
    differences: tuple[str, ...]
    only_first: tuple[Key, ...]
    only_second: tuple[Key, ...]


def between(
    first: pd.DataFrame,
    second: pd.DataFrame,
    first_outcomes: pd.DataFrame | None = None,
    second_outcomes: pd.DataFrame | None = None,
) -> Comparison:
    """Compare the rows that two boards share.

    Images are paired where the data are the same and both outcome files are there; otherwise the accuracies are
    compared as those of independent samples. Robust accuracies under different threats are not compared, and nothing
    is on different data sets.
    """
    import pandas as pd

    left, right = csv_file.scored_rows(first), csv_file.scored_rows(second)
    shared = [key for key in left if key in right]
    models = {key.model for key in shared}
    differences, alike, same_threat, same_images = _differences(
        *(board[board["model"].isin(models)] if models else board for board in (first, second))
    )
    bits = None
    if same_images and first_outcomes is not None and second_outcomes is not None:
        bits = outcomes.scores(first_outcomes), outcomes.scores(second_outcomes)
    elif alike and same_images:
        differences.append("no outcome file beside one of the boards: the images are not paired")
    rows = []
    for key in shared if alike else []:
        a, b = left[key], right[key]
        row = dict(zip(BETWEEN, (*key, a["metric"], 100 * (b["clean"] - a["clean"])), strict=False))
        if same_threat:
            row |= _robust(key, a, b, bits)
        rows.append(row)
    return Comparison(
        pd.DataFrame(rows, columns=list(BETWEEN)),
        tuple(differences),
        tuple(key for key in left if key not in right),
        tuple(key for key in right if key not in left),
    )


Row = dict[str, object]


def _robust(key: Key, a: pd.Series, b: pd.Series, bits: object) -> Row:
    metric = of_row(dict(a))
    if isinstance(bits, tuple) and key in bits[0] and key in bits[1]:
        found = paired(bits[0][key][1], bits[1][key][1])
        low, high = metric.interval(found.low, found.high)
        extra: Row = {"gained": found.gained, "lost": found.lost, "p_value": found.p_value, "test": "paired"}
        return {"robust_pp": 100 * metric.shown(found.delta), "low": 100 * low, "high": 100 * high} | extra
    delta = 100 * (b["robust"] - a["robust"])
    if metric is not METRICS["class"]:  # a mean of graded answers tells nothing of their spread
        return {"robust_pp": delta}
    low, high, p_value = unpaired(a["robust"] * a["n"], int(a["n"]), b["robust"] * b["n"], int(b["n"]))
    return {"robust_pp": delta, "low": 100 * low, "high": 100 * high, "p_value": p_value, "test": "unpaired"}


def _differences(first: pd.DataFrame, second: pd.DataFrame) -> tuple[list[str], bool, bool, bool]:
    """Sentences; whether the data sets are alike, the threats the same, and the images the same."""
    sentences = []
    same_images = _values(first, "data_sha256") == _values(second, "data_sha256")
    kinds = [{name.split("[")[0] for name in _values(board, "dataset")} for board in (first, second)]
    alike = kinds[0] == kinds[1]
    if not alike:
        sentences.append(f"{_against(first, second, 'dataset')}: other data, so nothing is compared")
    elif not same_images:
        sentences.append(f"{_against(first, second, 'dataset')}: other images, so they are not paired")
    changed = [name for name in SAME_THREAT if _values(first, name) != _values(second, name)]
    sentences += [f"{_against(first, second, name)}: robust accuracies are not compared" for name in changed]
    sentences += [_against(first, second, name) for name in NOISE if _values(first, name) != _values(second, name)]
    return sentences, alike, not changed, same_images


def _values(board: pd.DataFrame, name: str) -> set[str]:
    return {csv_file.written(value, name) for value in board.loc[board["status"] == csv_file.OK, name]}


def _against(first: pd.DataFrame, second: pd.DataFrame, name: str) -> str:
    def short(board: pd.DataFrame) -> str:
        values = sorted(_values(board, name))
        return ", ".join(value[:12] if name.endswith("sha256") else value for value in values) or "nothing"

    return f"{name}: {short(first)} against {short(second)}"
