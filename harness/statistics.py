"""Intervals and tests. Pure; whatever scipy has is scipy's."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927).

    Args:
        successes: how many of ``n``; a mean of graded scores times ``n`` is rounded, which widens nothing much.
        n: how many there were, at least 1.
        confidence: of the two-sided interval.

    Returns:
        The lower and upper bound, in [0, 1].
    """
    interval = binomtest(round(successes), n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
