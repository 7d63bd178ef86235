"""The outcome file beside a leaderboard: a bit for each image, so that two boards can be compared image by image.

``leaderboards/x.csv`` has ``leaderboards/x.outcomes.csv``: a row for each model, steering and stage, whose column
``outcomes`` is a string of 0 (lost), 1 (standing) and ? (not attacked, since the steering was given up before), one
character an image, in the benchmark's order. Where an answer is graded, it is a number an image, with spaces between:
the share of the attributes that are right, or the negative of a squared error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.errors import LeaderboardError
from harness.leaderboard.csv_file import Key, ModelEntry, method_of
from harness.scheduling.trials import CLEAN, REPLAY
from harness.util.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("model", "method", "beta", "c", "stage", "outcomes")

SUFFIX = ".outcomes.csv"


def path_of(board: Path) -> Path:
    """The outcome file of a leaderboard."""
    return board.with_suffix(SUFFIX)


def is_one(path: Path) -> bool:
    """Whether a file is an outcome file, by its name."""
    return path.name.endswith(SUFFIX)


def table(entries: Iterable[ModelEntry]) -> pd.DataFrame:
    """The outcomes of every scored model, stage by stage, and after the replay."""
    import pandas as pd

    return pd.DataFrame(list(_rows(entries)), columns=list(COLUMNS))


def _rows(entries: Iterable[ModelEntry]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        for score in sorted(entry.scores, key=lambda score: (-score.steering.beta, score.steering.c)):
            stages = dict(score.stages) | ({REPLAY: score.replay} if score.replay is not None else {})
            for stage, values in stages.items():
                beta, c = score.steering.beta, score.steering.c
                yield (
                    str(entry.shared["model"]),
                    method_of(entry, score.steering),
                    f"{beta:.6g}",
                    f"{c:.6g}",
                    stage,
                    written(values),
                )


def written(values: np.ndarray) -> str:
    """Outcomes as the file has them."""
    values = values + 0.0  # no −0
    known = values[~np.isnan(values)]
    if np.isin(known, (0.0, 1.0)).all():
        return "".join("?" if np.isnan(value) else f"{value:.0f}" for value in values)
    return " ".join("?" if np.isnan(value) else f"{value:.7g}" for value in values)


def write(outcomes: pd.DataFrame, board: Path) -> None:
    """Write the outcome file of ``board``, whole or not at all."""
    write_whole(path_of(board), outcomes.to_csv(index=False, lineterminator="\n"))


def read(board: Path) -> pd.DataFrame | None:
    """The outcome file of ``board``; None where there is none.

    Raises:
        LeaderboardError: it is there but is not one of ours.
    """
    import pandas as pd

    path = path_of(board)
    if not path.exists():
        return None
    try:
        found = pd.read_csv(
            path, dtype={"model": str, "method": str, "stage": str, "outcomes": str}, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path}: cannot be read as an outcome file: {error}") from error
    if tuple(found.columns) != COLUMNS:
        raise LeaderboardError(f"{path}: not an outcome file: expected the columns {', '.join(COLUMNS)}")
    return found


def scores(outcomes: pd.DataFrame) -> Mapping[Key, tuple[np.ndarray, np.ndarray]]:
    """The clean and robust scores of each image, float64 [n], by row; bounds where one was given up.

    Where images were replayed, the threat is "worst" and robust is what its last stage left; otherwise it is the
    share of the stages that an image survived.
    """
    found: dict[Key, tuple[np.ndarray, np.ndarray]] = {}
    worst = bool((outcomes["stage"] == REPLAY).any())
    for key, group in outcomes.groupby(["model", "method", "beta", "c"], sort=False):
        model, method, beta, c = map(str, key)
        stages = {
            str(stage): values_of(str(text)) for stage, text in zip(group["stage"], group["outcomes"], strict=True)
        }
        stages.pop(REPLAY, None)
        clean = stages.pop(CLEAN)
        attacked = list(stages.values()) or [clean]
        robust = attacked[-1] if worst else np.mean(attacked, axis=0)
        found[Key(model, method, float(beta), float(c))] = clean, robust
    return found


def values_of(text: str) -> np.ndarray:
    """Outcomes from what the file has, float64 [n]; of what is not known, the most that it can be."""
    if set(text) <= set("01?"):
        return np.array([bit != "0" for bit in text], np.float64)
    values = text.split(" ")
    most = 0.0 if any(value.startswith("-") for value in values) else 1.0  # of a negative error, of a share
    return np.array([most if value == "?" else float(value) for value in values], np.float64)
