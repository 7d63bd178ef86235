"""A note for a model whose whole grid of β lies where nothing is to be found, with a better grid. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harness.curvature.smoothing import misplaced
from harness.leaderboard.row import LeaderboardRow, baseline_of, known

KEPT = 0.5
"""Share of the baseline's clean accuracy below which a steering has destroyed the network."""


def placement(rows: Sequence[LeaderboardRow]) -> str:
    """Return a sentence where the whole grid leaves the network as it is, or destroys it; otherwise nothing.

    Args:
        rows: all rows of a model. The smooth family is not judged: its β has a scale, that of the activation itself.
    """
    grid = [row for row in rows if row.kind in ("steered", "bounded") and row.family == "relu" and not row.is_adapted]
    if not grid:
        return ""
    baseline, widest = baseline_of(rows), min(grid, key=lambda row: known(row.beta))
    spread = (1.0 - known(widest.beta)) / widest.smoothing if widest.smoothing else None
    destroyed = baseline.metric.is_share and max(known(row.clean) for row in grid) < KEPT * known(baseline.clean)
    found = misplaced([known(row.beta) for row in grid], spread, destroyed)
    return f"The whole grid {found.fault}; {found.remedy}." if found else ""
