"""Intervals and tests for outcomes of images. Pure; what scipy and statsmodels offer is taken from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy

UNLIKE = 0.001
"""Significance level at which a measured accuracy is called unlike the published one."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a share (Wilson 1927).

    Args:
        successes: number of successes; a sum of graded scores is rounded.
        n: number of trials, at least 1.
        confidence: two-sided confidence level, in (0, 1).

    Returns:
        Lower and upper bound, in [0, 1].
    """
    interval = scipy.stats.binomtest(round(successes), n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def interval(scores: np.ndarray, graded: bool) -> tuple[float, float]:
    """Return the 95 % interval for the mean of scores [n]: Wilson's, or a bootstrap interval if they are graded."""
    return resampled(np.asarray(scores, np.float64)) if graded else wilson(float(scores.sum()), len(scores))


def resampled(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval for the mean of values [n]; seeded."""
    if (values == values[0]).all():
        return float(values[0]), float(values[0])
    found = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, rng=0, method="percentile", batch=100)
    low, high = map(float, found.confidence_interval)
    return low, high


@dataclass(frozen=True)
class Paired:
    """Comparison of two scores of the same images.

    Args:
        delta: mean of the second scores less mean of the first.
        low: lower bound of ``delta``, 95 %.
        high: upper bound of ``delta``, 95 %.
        gained: number of images that score higher the second time.
        lost: number of images that score lower the second time.
        p_value: two-sided p-value: of McNemar's exact test; for graded scores, of a sign-flip test of their mean
            difference; for a choice of β by cross-validation, of the test in `harness.analysis.selection_inference`.
    """

    delta: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare two scores of the same images.

    Scores of 0 and 1 get Newcombe's interval and McNemar's test. Graded scores, of which a few large differences may
    outweigh many small ones, get a bootstrap interval and a sign-flip test.

    Args:
        first: first score of each image, [n]; more is better.
        second: second score of each image, [n].
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    difference = second - first
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        low, high = newcombe(int(((first == 1) & (second == 1)).sum()), gained, lost, len(first))
        p_value = mcnemar(gained, lost)
    else:
        (low, high), p_value = resampled(difference), flipped(difference)
    return Paired(float(difference.mean()), low, high, gained, lost, p_value)


def flipped(difference: np.ndarray, alternative: str = "two-sided") -> float:
    """Return the p-value of the sign-flip test of a mean difference; seeded.

    Without an effect, each image's difference has either sign equally often.

    Args:
        difference: difference of each image, [n].
        alternative: "two-sided", "greater" or "less".
    """
    if not difference.any():
        return 1.0
    unit = 1e-6 * float(np.abs(difference).max())  # sums that differ by float noise are equal

    def mean(values: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.round(values.mean(axis=axis) / unit))

    found = scipy.stats.permutation_test(
        (difference,), mean, permutation_type="samples", vectorized=True, n_resamples=9999, batch=100,
        alternative=alternative, rng=0,
    )  # fmt: skip
    return float(found.pvalue)


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value of McNemar's exact two-sided test (McNemar 1947); 1 if nothing changed."""
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def fell(gained: int, lost: int) -> float:
    """Return the p-value of the exact one-sided test of a fall: the probability of as many losses by chance alone."""
    return float(scipy.stats.binomtest(lost, gained + lost, alternative="greater").pvalue) if gained + lost else 1.0


def newcombe(both: int, gained: int, lost: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval for the difference of two paired shares (Newcombe 1998, Stat. Med. 17:2635, method 10).

    Args:
        both: number of images that survive both times.
        gained: number of images that survive only the second time.
        lost: number of images that survive only the first time.
        n: number of all images.

    Returns:
        Bounds of the second share less the first, in [-1, 1].
    """
    second, first = (both + gained) / n, (both + lost) / n
    (low_2, high_2), (low_1, high_1) = wilson(both + gained, n), wilson(both + lost, n)
    phi = _correlation(both, gained, lost, n - both - gained - lost)
    delta = second - first
    below = _hybrid(second - low_2, high_1 - first, phi)
    above = _hybrid(high_2 - second, first - low_1, phi)
    return delta - below, delta + above


def _hybrid(a: float, b: float, phi: float) -> float:
    return sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Return Newcombe's φ of the 2×2 table, with his continuity correction where it is positive."""
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if margins == 0:
        return 0.0
    n = both + gained + lost + neither
    numerator = both * neither - gained * lost
    if numerator > 0:
        numerator = max(numerator - n / 2, 0.0)  # type: ignore[assignment]
    return float(numerator / sqrt(margins))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing (Holm 1979, step-down).

    statsmodels' ``multipletests`` gives the same numbers (a test compares them), but runs the garbage collector at each
    call: 0.2 s, and a simulation makes thousands of calls.

    Args:
        p_values: p-value of each hypothesis, in [0, 1].

    Returns:
        The adjusted p-values, in the same order, in [0, 1].
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1.0)
    adjusted = np.empty_like(values)
    adjusted[order] = stepped
    return [float(p) for p in adjusted]


def unpaired(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float, float]:
    """Compare two shares of different images.

    Args:
        first: number of successes in the first sample; rounded.
        n_first: size of the first sample, at least 1.
        second: number of successes in the second sample; rounded.
        n_second: size of the second sample, at least 1.

    Returns:
        Bounds of Newcombe's 95 % interval for the second share less the first (1998, independent samples), and the
        p-value of Fisher's exact test.
    """
    from statsmodels.stats.proportion import confint_proportions_2indep

    a, b = round(first), round(second)
    low, high = confint_proportions_2indep(b, n_second, a, n_first, method="newcomb", compare="diff")
    return float(low), float(high), float(scipy.stats.fisher_exact([[b, n_second - b], [a, n_first - a]]).pvalue)


def unlike(clean_correct: int, n: int, published_clean: float) -> bool:
    """Return whether an accuracy is further from the published one than chance explains.

    By the exact binomial test (Clopper & Pearson 1934), two-sided at level `UNLIKE`: the scored images, the first of
    the test set, are taken for a sample of it.

    Args:
        clean_correct: number of clean images that the untouched network classifies correctly.
        n: number of images, at least 1.
        published_clean: published clean accuracy, in [0, 1].
    """
    return bool(scipy.stats.binomtest(clean_correct, n, published_clean).pvalue < UNLIKE)
