"""The outcome file: what is written comes back, and the scores of each image follow from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import scores
from helpers.gate import BITS, COMMITTED, GRID, N, flip

from harness.errors import LeaderboardError
from harness.leaderboard import outcomes
from harness.leaderboard.row import RowKey


def test_outcomes_survive_the_file(tmp_path: Path) -> None:
    outcomes.write(COMMITTED.outcomes, tmp_path / "x.csv")
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
    score = scores.score(1.0, np.mean([BITS, flip(BITS, 20)], axis=0), np.ones(N), stages=stages)
    found = outcomes.scores(outcomes.table([scores.entry(score)]))
    assert np.array_equal(found[RowKey("m", "untouched", 1.0, 0.5)][1], score.robust)
