"""The outcome file: what is written comes back, and the scores of each image follow from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import boards, scores
from helpers.gate import BITS, COMMITTED, GRID, N, flip

from harness.errors import LeaderboardError
from harness.leaderboard import outcomes
from harness.leaderboard.row import RowKey


def test_outcomes_survive_the_file(tmp_path: Path) -> None:
    boards.write(COMMITTED.table, tmp_path / "x.csv", COMMITTED.outcomes)
    back = outcomes.read(tmp_path / "x.csv")
    assert back is not None
    found = outcomes.scores(back)
    for steering, bits in GRID.items():
        clean, robust = found[RowKey("m", "untouched" if steering.is_baseline else "ct", steering.beta, 0.5)]
        assert np.array_equal(robust, bits)
        assert clean.all()
    assert outcomes.read(tmp_path / "y.csv") is None
    (tmp_path / "z.outcomes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LeaderboardError, match="not an outcome file"):
        outcomes.read(tmp_path / "z.csv")


def test_graded_outcomes_are_the_mean_of_the_stages() -> None:
    stages = {"clean": np.ones(N), "fog/1": BITS, "fog/2": flip(BITS, 20)}
    score = scores.score(1.0, np.mean([BITS, flip(BITS, 20)], axis=0), np.ones(N), stages=stages, attacked=False)
    found = outcomes.scores(outcomes.table([scores.entry(score)]))
    assert np.array_equal(found[RowKey("m", "untouched", 1.0, 0.5)][1], score.robust)


def rows(*lines: tuple[str, str], steering: tuple[str, str, str] = ("ct", "0.9", "0.5")) -> list[tuple[str, ...]]:
    return [("m", *steering, stage, text) for stage, text in lines]


def test_an_image_that_was_lost_to_a_later_stage_first_is_lost() -> None:
    """The first stage never saw the second image, and nobody has finished the third."""
    found = outcomes.scores(
        pd.DataFrame(
            rows(("clean", "1111"), ("apgd-ce", "1??0"), ("square", "10?0"), ("replay", "10?0")),
            columns=list(outcomes.COLUMNS),
        )
    )
    clean, robust = found[RowKey("m", "ct", 0.9, 0.5)]
    assert clean.tolist() == [1, 1, 1, 1]
    assert robust.tolist() == [1, 0, 1, 0]


def test_an_unknown_error_is_no_error_in_a_bound() -> None:
    # Once: a stage of which nothing was known was read as a share, 1, where answers are errors, at best 0.
    stages = rows(("clean", "-1 -2"), ("shade-1", "-3 -4"), ("shade-2", "??"))
    found = outcomes.scores(pd.DataFrame(stages, columns=list(outcomes.COLUMNS)))
    assert found[RowKey("m", "ct", 0.9, 0.5)][1].tolist() == [-1.5, -2]
