"""Intervals and tests for outcomes of images. Pure; what scipy and statsmodels offer is taken from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import scipy

from harness.analysis.score_interval import Critical, of_mean, tango

REPEATS = 9999
"""Tables without an effect that a sign-flip test draws, so many that Holm's correction leaves a p below 5 %."""
CHUNK = 200_000
"""Signs that are drawn at a time, at four bytes each."""
ALPHA = 0.05
"""Two-sided significance level: gains and losses at half of it each; one less the confidence of an interval."""
NORMAL = 1.959963984540054
"""Critical value of the normal distribution at `ALPHA`, below which no test goes."""
TIE = 1e-5
"""Difference of two standardised differences that is rounding in float32."""
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
    """Comparison of two scores of the same images; the interval excludes 0 exactly where p is below 5 %.

    Args:
        delta: mean of the second scores less mean of the first.
        low: lower bound of ``delta``, 95 %.
        high: upper bound of ``delta``, 95 %.
        gained: number of images that score higher the second time.
        lost: number of images that score lower the second time.
        p_value: two-sided p-value, twice the smaller tail.
    """

    delta: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float


def paired(first: np.ndarray, second: np.ndarray, null: np.ndarray | None = None) -> Paired:
    """Compare two scores of the same images.

    Scores of 0 and 1 get McNemar's exact test, and as interval all that either Newcombe's or the score interval at the
    critical values of the test contains; so do others where none differs, an error changing by the largest one at most.
    Graded scores, of which a few large differences may outweigh many small ones, get a sign-flip test of their
    standardised mean difference, no less strict than the normal distribution, and the score interval at its critical
    values.

    Args:
        first: first score of each image, [n]; more is better.
        second: second score of each image, [n].
        null: standardised differences of tables without an effect, where the second scores come from a choice that had
            a part in the same tables; the test is then at least as strict as by these.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, difference = len(first), second - first
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    scores = np.concatenate([first, second])
    is_share = bool(np.isin(scores, (0.0, 1.0)).all())
    if is_share or gained + lost == 0:
        p_value, critical = _stricter(_exact(gained, lost), difference, null)
        both = {int(((first == 1) & (second == 1)).sum())} if is_share else set[int]()
        both |= set() if gained + lost else {n}
        most = 1.0 if (scores >= 0).all() else float(np.abs(scores).max())  # of errors, an image's largest change
        shares = [*(newcombe(each, gained, lost, n) for each in both), tango(gained, lost, n, critical)]
        ends = [(most * low, most * high) for low, high in shares]
    else:
        null = flips(difference) if null is None else null
        p_value, critical = _stricter(_normal(difference), difference, null)
        ends = [of_mean(difference, critical)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return Paired(float(difference.mean()), round(low, 9) + 0.0, round(high, 9) + 0.0, gained, lost, p_value)


Test = tuple[float, Critical]
"""A p-value, and the critical values beyond which it would be below `ALPHA`."""


def _exact(gained: int, lost: int) -> Test:
    """Return McNemar's exact test, the critical value being the largest difference that it does not reject."""
    changed = gained + lost
    fewest = scipy.stats.binom.ppf(ALPHA / 2, changed, 0.5)
    value = max(NORMAL, float(changed - 2 * fewest) / sqrt(changed)) if changed else NORMAL
    return mcnemar(gained, lost), Critical(value, value)


def _normal(difference: np.ndarray) -> Test:
    """Return the test by the normal distribution, in which rare large differences look too sure."""
    own = standardised(difference.sum(), (difference**2).sum())
    return 2 * float(scipy.stats.norm.sf(abs(own))), Critical(NORMAL, NORMAL)


def _stricter(test: Test, difference: np.ndarray, null: np.ndarray | None) -> Test:
    """Return a test that is at least as strict as another one, and as the tables without an effect ask for."""
    if null is None:
        return test
    p_value, critical = test
    own = standardised(difference.sum(), (difference**2).sum())
    tables = np.sort(np.append(null, own))  # the observed table is one of the possible ones
    tail = min((tables >= own - TIE).mean(), (tables <= own + TIE).mean())
    place = int(np.ceil(ALPHA / 2 * len(tables))) - 1
    values = Critical(max(critical.gain, tables[-1 - place]), max(critical.loss, -tables[place]))
    return max(p_value, min(1.0, 2 * float(tail))), Critical(*map(float, values))


def standardised(total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return total differences by their standard errors without an effect; 0 where no image differs.

    Args:
        total: sum of the differences of the images.
        squares: sum of their squares, of the same shape.
    """
    return np.asarray(total / np.sqrt(np.where(squares > 0, squares, 1)))


def flips(difference: np.ndarray) -> np.ndarray:
    """Return the standardised difference of tables in which each image's difference has either sign; seeded."""
    signs = random_signs(np.random.default_rng(0), REPEATS, len(difference))
    totals = np.concatenate([chunk @ difference for chunk in signs])
    return standardised(totals, np.full(len(totals), (difference**2).sum()))


def random_signs(rng: np.random.Generator, tables: int, n: int) -> Iterator[np.ndarray]:
    """Yield random signs for so many tables of n images, in chunks, float32 [tables, n]."""
    chunk = max(1, CHUNK // n)
    for start in range(0, tables, chunk):
        yield (2 * rng.integers(0, 2, (min(chunk, tables - start), n), np.int8) - 1).astype(np.float32)


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value of McNemar's exact two-sided test (McNemar 1947); 1 if nothing changed."""
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


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
