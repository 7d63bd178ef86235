"""Numbers as people read them: the one place where a difference, an interval, a bound or a p-value gets its form."""

from __future__ import annotations

from collections.abc import Iterable

from harness.analysis.metrics import Metric, spoken

TO = "\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}"
"""Between the ends of an interval, which stays on one line."""
ARROW = "\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}"
"""Between two accuracies, before and after."""
AT_MOST, AT_LEAST = "≤\N{NO-BREAK SPACE}", "≥\N{NO-BREAK SPACE}"
"""Before a bound."""
NONE = "–"
"""Shown in place of a missing number."""


def signed(points: float, digits: int = 1) -> str:
    """Format points with their sign, the minus as long as the plus; never −0.0."""
    return f"{round(points, digits) + 0.0:+.{digits}f}".replace("-", "−")


def signed_interval(low: float, high: float, digits: int = 1) -> str:
    """Format an interval of points, ``−2.0 … +10.0``."""
    return f"{signed(low, digits)}{TO}{signed(high, digits)}"


def difference(metric: Metric, hundredths: float) -> str:
    """Format a difference of a board: points of an accuracy, an error as such.

    Args:
        metric: what the difference is of.
        hundredths: the difference as the board has it, in hundredths of the metric.
    """
    points = metric.points(hundredths)
    return signed(points) if metric.is_share else f"{points + 0.0:+{metric.form}}".replace("-", "−")


def difference_interval(metric: Metric, low: float, high: float) -> str:
    """Format the interval of a difference; see `difference`."""
    return f"{difference(metric, low)}{TO}{difference(metric, high)}"


def unit(metric: Metric) -> str:
    """Return the unit of a difference: points, or the name of an error."""
    return "points" if metric.is_share else spoken(metric)


def p_value(p: float) -> str:
    """Format a p-value with two significant digits."""
    return f"{p:.2g}"


def count(number: float) -> str:
    """Format a count, ``7,690``."""
    return f"{number:,.0f}"


def count_range(numbers: Iterable[int]) -> str:
    """Format the smallest and the largest of counts; one number where they are equal."""
    return TO.join(count(number) for number in dict.fromkeys(numbers))
