"""The outcome file beside a leaderboard: one character an image, so that two boards can be compared image by image.

``leaderboards/x.csv`` has ``leaderboards/x.outcomes.csv``: a row for each model, steering and stage. Its column
``outcomes`` is a string, in the benchmark's order of images, of 1 (survived every attempt of the stages so far), 0
(lost to one of them) and ? (not known: the steering was pruned, or the image was lost to a later stage first). Graded
answers are a number an image, separated by spaces: the share of the attributes that are right, or the negative of a
squared error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.api.trial import CLEAN, REPLAY
from harness.errors import LeaderboardError
from harness.leaderboard.row import RowKey
from harness.leaderboard.scores import ModelEntry, Score

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("model", "method", "beta", "c", "stage", "outcomes")

SUFFIX = ".outcomes.csv"

ImageScores = tuple[np.ndarray, np.ndarray]
"""Clean and robust scores of each image, float64 [n] both."""


def path_of(board: Path) -> Path:
    """Return the path of the outcome file of a leaderboard."""
    return board.with_suffix(SUFFIX)


def is_outcome_file(path: Path) -> bool:
    """Return whether a path names an outcome file."""
    return path.name.endswith(SUFFIX)


def table(entries: Iterable[ModelEntry]) -> pd.DataFrame:
    """Return the outcomes of every scored model, stage by stage, and after the replay."""
    import pandas as pd

    return pd.DataFrame(list(_rows(entries)), columns=list(COLUMNS))


def _rows(entries: Iterable[ModelEntry]) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        for score in sorted(entry.scores, key=lambda score: (-score.steering.beta, score.steering.c)):
            by_stage = dict(score.stages) | ({REPLAY: _replayed(score)} if score.attacked else {})
            for stage, values in by_stage.items():
                beta, c = score.steering.beta, score.steering.c
                yield (
                    str(entry.shared["model"]),
                    entry.method_of(score.steering),
                    f"{beta:.6g}",
                    f"{c:.6g}",
                    stage,
                    written(values),
                )


def _replayed(score: Score) -> np.ndarray:
    """Return the outcomes that count, [n]: those of the row's own attack, and what fooled other steerings."""
    return score.robust if score.complete else np.where(score.robust > 0, np.nan, 0.0)


def written(values: np.ndarray) -> str:
    """Return the text of outcomes, float [n] with NaN where they are not known."""
    values = values + 0.0  # no −0
    known = values[~np.isnan(values)]
    if np.isin(known, (0.0, 1.0)).all():
        return "".join("?" if np.isnan(value) else f"{value:.0f}" for value in values)
    return " ".join("?" if np.isnan(value) else f"{value:.7g}" for value in values)


def to_csv(outcomes: pd.DataFrame) -> str:
    r"""Return the text of the outcome file, its lines ended by ``\n``."""
    return outcomes.to_csv(index=False, lineterminator="\n")


def read(board: Path) -> pd.DataFrame | None:
    """Read the outcome file of the leaderboard ``board``; None where there is none.

    Raises:
        LeaderboardError: the file is there but is not an outcome file, or a row of it cannot be one.
    """
    import pandas as pd

    path = path_of(board)
    if not path.exists():
        return None
    try:
        found = pd.read_csv(
            path, dtype=dict.fromkeys(COLUMNS, str) | {"beta": float, "c": float}, keep_default_na=False
        )
    except (OSError, ValueError) as error:
        raise LeaderboardError(f"{path}: cannot be read as an outcome file: {error}") from error
    if tuple(found.columns) != COLUMNS or not isinstance(found.index, pd.RangeIndex) or found.isna().any(axis=None):
        raise LeaderboardError(f"{path}: not an outcome file: expected the columns {', '.join(COLUMNS)}, all filled")
    try:
        _check(found)
    except LeaderboardError as error:
        raise LeaderboardError(f"{path}: {error}; run the benchmark again, or restore the file") from error
    return found


def _check(found: pd.DataFrame) -> None:
    """Refuse rows of an outcome file that cannot be ones: each once, as many images in all stages."""
    if found.duplicated(list(COLUMNS[:-1])).any():
        raise LeaderboardError("expected each row and stage once, found one twice")
    for key, texts in stages(found).items():
        sizes = {stage: _size(text) for stage, text in texts.items()}
        n = next(iter(sizes.values()))
        odd = next((stage for stage, size in sizes.items() if size is None or size != n), None)
        if odd is not None:
            raise LeaderboardError(
                f"{key.name}: {odd}: expected 1, 0 or ? for each image, of which the first stage has {n or 'none'}, or "
                f"numbers up to 1 separated by spaces, found {texts[odd][:40]!r}"
            )


def _size(text: str) -> int | None:
    """Return the number of images of outcomes; None if they are none."""
    if text and set(text) <= set("01?"):
        return len(text)
    numbers = text.split(" ")
    return len(numbers) if all(value == "?" or _is_grade(value) for value in numbers) else None


def _is_grade(value: str) -> bool:
    try:
        return -math.inf < float(value) <= 1
    except ValueError:
        return False


def stages(outcomes: pd.DataFrame) -> dict[RowKey, dict[str, str]]:
    """Return the text of the outcomes by row and stage, in the order of the file."""
    found: dict[RowKey, dict[str, str]] = {}
    for model, method, beta, c, stage, text in outcomes[list(COLUMNS)].itertuples(index=False, name=None):
        found.setdefault(RowKey(model, method, float(beta), float(c)), {})[stage] = text
    return found


def scores(outcomes: pd.DataFrame) -> Mapping[RowKey, ImageScores]:
    """Return the scores of each image by row; where the row was pruned, upper bounds.

    Under an attack it is the outcome of the replay, its last stage, that counts; otherwise the share of the stages that
    an image survived.

    Raises:
        LeaderboardError: a row has no clean stage.
    """
    found: dict[RowKey, ImageScores] = {}
    for key, texts in stages(outcomes).items():
        if CLEAN not in texts:
            raise LeaderboardError(f"{key.name}: expected outcomes of the stage {CLEAN}, found {', '.join(texts)}")
        most = most_of(texts)
        values = {stage: values_of(text, most) for stage, text in texts.items()}
        clean = values.pop(CLEAN)
        found[key] = clean, values[REPLAY] if REPLAY in values else np.mean(list(values.values()) or [clean], axis=0)
    return found


def own(outcomes: pd.DataFrame) -> dict[RowKey, np.ndarray]:
    """Return the scores [n] against the row's own attack by row, where its last stage is known of every image."""
    found = {}
    for key, texts in stages(outcomes).items():
        last = list(texts)[-2:]
        if last[1:] == [REPLAY] and "?" not in texts[last[0]]:
            found[key] = values_of(texts[last[0]])
    return found


def most_of(texts: Mapping[str, str]) -> float:
    """Return the highest score that an image of a row can have, from its outcomes by stage: 0 where it is an error."""
    return 0.0 if any("-" in text for text in texts.values()) else 1.0


def values_of(text: str, most: float = 1.0) -> np.ndarray:
    """Parse outcomes, float64 [n].

    Args:
        text: outcomes as the outcome file has them.
        most: the highest score that an image can have; it stands for those that are not known.
    """
    values = text if set(text) <= set("01?") else text.split(" ")
    return np.array([most if value == "?" else float(value) for value in values], np.float64)
