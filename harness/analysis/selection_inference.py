"""Is the gain of a cross-validated choice of β real? A test of the whole procedure, and its interval. Pure.

On each fold the choice is independent of the images that it is reported on, so the mean gain is honest. But folds are
not independent of each other: a β that is lucky on one fold is chosen on the others. McNemar's test, which takes the
images for independent, claims gains that are not there too often: in 4.9 % of the tables of ``ci/simulate.py``, against
2.8 % for a β fixed beforehand. So the whole procedure, choice included, is repeated on tables without any gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from harness.analysis.selection import Scored, better
from harness.analysis.statistics import Paired

REPEATS = 1999
CHUNK = 100
"""Repeats at once: their signs take CHUNK × n × 4 bytes."""
SAME = 1e-4
"""Images, of rounding in float32 sums of graded scores."""

Sets = Sequence[tuple[np.ndarray, np.ndarray]]
"""For each fold: the positions that β is chosen on, and those it is reported on."""


def of_procedure(grid: Sequence[Scored], sets: Sets, seed: int) -> Paired:
    """Paired comparison of choosing β by cross-validation with the baseline; see `harness.analysis.statistics.Paired`.

    The p-value is that of a sign-flip test, two-sided: without an effect, an image is as likely to be gained as lost,
    so all its differences from the baseline, over all β at once, may as well have the other sign. The interval is as
    wide to either side as 95 % of the flipped tables reach, so it excludes 0 exactly where p is below 5 %.

    Args:
        grid: every steering's scores on the same images, the baseline's among them.
        sets: from `harness.analysis.selection.selection_sets`.
        seed: of the resampling.
    """
    (baseline,) = (scored for scored in grid if scored.steering.is_baseline)
    fold_grids = [_in_order_of_ties(grid, chosen_on) for chosen_on, _ in sets]
    gains = [np.stack([scored.robust for scored in ordered]) - baseline.robust for ordered in fold_grids]
    gains = [gain.astype(np.float32) for gain in gains]
    n = len(baseline.robust)
    own = _per_image(gains, sets)
    rng = np.random.default_rng(seed)
    flipped = np.concatenate([_totals(gains, sets, signs) for signs in _signs(rng, n)])
    total = float(own.sum())
    reach = np.sort(np.append(np.abs(flipped), abs(total)))  # the table itself is one of those that could have been
    p_value = float((reach >= abs(total) - SAME).mean())
    width = float(reach[math.ceil(0.95 * len(reach)) - 1])
    most = float(max(1.0, *(np.abs(gain).max() for gain in gains)))  # a difference of accuracies is at most one
    low, high = max((total - width) / n, -most), min((total + width) / n, most)
    return Paired(total / n, low, high, int((own > 0).sum()), int((own < 0).sum()), p_value)


def _in_order_of_ties(grid: Sequence[Scored], positions: np.ndarray) -> list[Scored]:
    """The order in which equal robust accuracies are preferred, so that the first maximum is the winner."""
    level = [Scored(scored.steering, scored.clean[positions], np.zeros(1)) for scored in grid]
    return [scored for _, scored in sorted(zip(level, grid, strict=True), key=lambda pair: better(pair[0]))]


def _winners(gain: np.ndarray, factors: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The row of ``gain`` that wins on ``positions`` under each row of ``factors``, [repeats]."""
    return np.asarray((factors[:, positions] @ gain[:, positions].T).round(3).argmax(axis=1))


def _totals(gains: Sequence[np.ndarray], sets: Sets, factors: np.ndarray) -> np.ndarray:
    """The sum of what the procedure gains when each image's differences are multiplied by ``factors``, [repeats]."""
    total = np.zeros(len(factors))
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        winners = _winners(gain, factors, chosen_on)
        reported = factors[:, reported_on] @ gain[:, reported_on].T
        total += reported[np.arange(len(factors)), winners]
    return total


def _per_image(gains: Sequence[np.ndarray], sets: Sets) -> np.ndarray:
    """What the procedure gains on each image of the table as it is, [n]."""
    n = gains[0].shape[1]
    own = np.zeros(n)
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        (winner,) = _winners(gain, np.ones((1, n), np.float32), chosen_on)
        own[reported_on] = gain[winner, reported_on]
    return own


def _signs(rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    for start in range(0, REPEATS, CHUNK):
        yield rng.choice(np.array([-1, 1], np.float32), (min(CHUNK, REPEATS - start), n))
