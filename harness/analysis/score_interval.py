"""Score interval for a paired difference: the true differences that a test with given critical values accepts. Pure.

Newcombe's interval alone covers too seldom where images are gained and hardly any lost (92.6 % at n = 250 and one point
gained); the score interval alone may be the narrower one elsewhere. Together they cover: see ``ci/simulate.py``.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

import numpy as np

HALVINGS = 40
"""Bisections of [-1, 1]: to 12 digits."""


class Critical(NamedTuple):
    """Critical values of a standardised difference, (gained - lost) / √(gained + lost) for answers right or wrong.

    Args:
        gain: a larger value is a significant gain.
        loss: a value below the negative of this one is a significant loss.
    """

    gain: float
    loss: float


def tango(gained: int, lost: int, n: int, critical: Critical) -> tuple[float, float]:
    """Return the score interval for the difference of two paired shares (Tango 1998, Stat. Med. 17:891).

    It excludes 0 exactly where the standardised difference is beyond a critical value; with no image gained or lost it
    is Wilson's for 0 of n, to either side.

    Args:
        gained: number of images that survive only the second time.
        lost: number of images that survive only the first time.
        n: number of all images.
        critical: critical values of the standardised difference.

    Returns:
        Bounds of the second share less the first, in [-1, 1].
    """
    return _lower_end(gained, lost, n, critical.gain), -_lower_end(lost, gained, n, critical.loss)


def _lower_end(gained: int, lost: int, n: int, critical: float) -> float:
    rejected, accepted = -1.0, (gained - lost) / n
    for _ in range(HALVINGS):
        middle = (rejected + accepted) / 2
        if _is_rejected(middle, gained, lost, n, critical):
            rejected = middle
        else:
            accepted = middle
    return rejected


def _is_rejected(difference: float, gained: int, lost: int, n: int, critical: float) -> bool:
    """Return whether the images are too many standard errors above a true difference.

    The standard error is that under the difference, the share of lost images being the likeliest with it.
    """
    a, b, c = 2 * n, (2 * n - gained + lost) * difference - gained - lost, -lost * difference * (1 - difference)
    losing = (sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = n * (2 * losing + difference * (1 - difference))
    return gained - lost - n * difference > critical * sqrt(max(variance, 0.0))


def of_mean(differences: np.ndarray, critical: Critical) -> tuple[float, float]:
    """Return the score interval for the mean of graded differences; it excludes 0 exactly where the test does.

    Args:
        differences: difference of each image, [n].
        critical: critical values of the standardised difference Σd / √Σd².
    """
    mean, spread, n = float(differences.mean()), float(differences.var()), len(differences)
    most = float(max(1.0, np.abs(differences).max()))

    def half(value: float) -> float:
        return value * sqrt(spread / (n - value**2)) if value**2 < n else inf

    return max(mean - half(critical.gain), -most), min(mean + half(critical.loss), most)
