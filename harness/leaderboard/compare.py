"""Comparison of two leaderboards, or within one: what changed, by how much, and could it be chance? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from harness.analysis.metrics import METRICS
from harness.analysis.statistics import paired, unpaired
from harness.leaderboard import outcomes
from harness.leaderboard.outcomes import ImageScores
from harness.leaderboard.question import differences
from harness.leaderboard.row import HEADLINES, LeaderboardRow, RowKey, known, rows_of

if TYPE_CHECKING:
    import pandas as pd

WITHIN = (
    "model", "metric", "status", "chosen", "robust", "baseline", "delta_pp", "delta_low", "delta_high", "gained",
    "lost", "p_value", "p_holm", "flags",
)  # fmt: skip

SAME_THREAT = ("metric", "threat", "eps", "attack", "protocol", "parameters")
"""Columns that must be equal for robust accuracies to mean the same."""
NOISE = ("family", "seed", "weights_sha256", "ct_harness", "torch", "device", "compiled")
"""Columns whose difference is named but does not stop a comparison."""


def within(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each model's selected β with its baseline, on the same images; columns `WITHIN`."""
    import pandas as pd

    headlines = table[table["status"].isin(HEADLINES.values())].copy()
    headlines["baseline"] = headlines["robust"] - headlines["delta_pp"] / 100
    return pd.DataFrame(headlines, columns=list(WITHIN)).reset_index(drop=True)


class RowComparison(NamedTuple):
    """A row of the second board minus the same row of the first.

    Args:
        model: label of the model.
        method: ``ct``, ``untouched``, or another method.
        beta: β of the row.
        c: c of the row.
        metric: what both rows measure, as their column ``metric`` has it.
        clean_pp: difference of the clean accuracies, in percentage points.
        robust_pp: difference of the robust accuracies; None where the threats differ.
        low: lower end of its 95 % interval; None where there is none.
        high: upper end.
        gained: images that only the second board's network gets right; None where images are not paired.
        lost: images that only the first board's network gets right.
        p_value: of ``test``.
        test: "paired" on the same images, else "unpaired"; None where nothing was tested.
    """

    model: str
    method: str
    beta: float
    c: float
    metric: str
    clean_pp: float
    robust_pp: float | None = None
    low: float | None = None
    high: float | None = None
    gained: int | None = None
    lost: int | None = None
    p_value: float | None = None
    test: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two boards, row by row.

    Args:
        rows: of those that both boards have, in the order of the first.
        differences: a sentence for each difference between the boards, and what it means for the comparison.
        only_first: rows that only the first board has.
        only_second: rows that only the second board has.
    """

    rows: tuple[RowComparison, ...]
    differences: tuple[str, ...]
    only_first: tuple[RowKey, ...]
    only_second: tuple[RowKey, ...]

    def table(self) -> pd.DataFrame:
        """Return the rows as a table, a column for each field of `RowComparison`."""
        import pandas as pd

        return pd.DataFrame(list(self.rows), columns=list(RowComparison._fields))


BothScores = tuple[Mapping[RowKey, ImageScores], Mapping[RowKey, ImageScores]]


def between(
    first: pd.DataFrame,
    second: pd.DataFrame,
    first_outcomes: pd.DataFrame | None = None,
    second_outcomes: pd.DataFrame | None = None,
) -> Comparison:
    """Compare the rows that two boards share.

    Images are paired where the data are the same and both outcome files are there; otherwise the accuracies are
    compared as those of independent samples. Robust accuracies under different threats are not compared, and nothing
    is on different datasets.
    """
    left, right = ({row.key: row for row in rows_of(board) if row.is_finished} for board in (first, second))
    shared = [key for key in left if key in right]
    models = {key.model for key in shared}
    found = _differences(
        *([row for row in rows.values() if not models or row.model in models] for rows in (left, right))
    )
    sentences = list(found.sentences)
    scores: BothScores | None = None
    if found.same_images and first_outcomes is not None and second_outcomes is not None:
        scores = outcomes.scores(first_outcomes), outcomes.scores(second_outcomes)
    elif found.same_data and found.same_images:
        sentences.append("no outcome file beside one of the boards: the images are not paired")
    return Comparison(
        tuple(_compared(left[key], right[key], found.same_threat, scores) for key in shared if found.same_data),
        tuple(sentences),
        tuple(key for key in left if key not in right),
        tuple(key for key in right if key not in left),
    )


def _compared(a: LeaderboardRow, b: LeaderboardRow, same_threat: bool, scores: BothScores | None) -> RowComparison:
    row = RowComparison(*a.key, a.metric.name, 100 * (known(b.clean) - known(a.clean)))
    if not same_threat:
        return row
    if scores is not None and a.key in scores[0] and a.key in scores[1]:
        found = paired(scores[0][a.key][1], scores[1][a.key][1])
        low, high = a.metric.interval(found.low, found.high)
        return row._replace(
            robust_pp=100 * a.metric.shown(found.delta),
            low=100 * low,
            high=100 * high,
            gained=found.gained,
            lost=found.lost,
            p_value=found.p_value,
            test="paired",
        )
    delta = 100 * (known(b.robust) - known(a.robust))
    if a.metric is not METRICS["class"]:  # a mean of graded answers tells nothing of their spread
        return row._replace(robust_pp=delta)
    (x, n), (y, m) = ((known(one.robust), known(one.n)) for one in (a, b))
    low, high, p_value = unpaired(x * n, n, y * m, m)
    return row._replace(robust_pp=delta, low=100 * low, high=100 * high, p_value=p_value, test="unpaired")


class _Differences(NamedTuple):
    sentences: tuple[str, ...]
    same_data: bool
    same_threat: bool
    same_images: bool


def _differences(first: Sequence[LeaderboardRow], second: Sequence[LeaderboardRow]) -> _Differences:
    """Tell in what two boards differ: sentences, and whether datasets, threats and images are the same."""
    sentences = []
    same_images = _values(first, "data_sha256") == _values(second, "data_sha256")
    names = [{name.split("[")[0] for name in _values(rows, "dataset")} for rows in (first, second)]
    same_data = names[0] == names[1]
    if not same_data:
        sentences.append(f"{_against(first, second, 'dataset')}: other data, so nothing is compared")
    elif not same_images:
        sentences.append(f"{_against(first, second, 'dataset')}: other images, so they are not paired")
    changed = [name for name in SAME_THREAT if _values(first, name) != _values(second, name)]
    told = [name for name in changed if name != "parameters"]
    differing = [_against(first, second, name) for name in told] or _parameters(first, second)
    sentences += [f"{sentence}: robust accuracies are not compared" for sentence in differing]
    sentences += [_against(first, second, name) for name in NOISE if _values(first, name) != _values(second, name)]
    if not sentences and _values(first, "question") != _values(second, "question"):
        sentences.append(f"{_against(first, second, 'question')}: the files .question.yaml beside the boards say more")
    return _Differences(tuple(sentences), same_data, not changed, same_images)


def _parameters(first: Sequence[LeaderboardRow], second: Sequence[LeaderboardRow]) -> list[str]:
    """Tell in what the parameters of two boards' threats differ."""
    pairs = zip(sorted(_values(first, "parameters")), sorted(_values(second, "parameters")), strict=False)
    return [sentence for a, b in pairs for sentence in differences(a, b)]


def _values(rows: Sequence[LeaderboardRow], column: str) -> set[str]:
    return {row.written(column) for row in rows}


def _against(first: Sequence[LeaderboardRow], second: Sequence[LeaderboardRow], column: str) -> str:
    def short(rows: Sequence[LeaderboardRow]) -> str:
        values = sorted(_values(rows, column))
        return ", ".join(value[:12] if column.endswith("sha256") else value for value in values) or "nothing"

    return f"{column}: {short(first)} against {short(second)}"
