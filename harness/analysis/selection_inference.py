"""Inference for a cross-validated choice of β: a test of the whole procedure, and its interval. Pure.

On each fold the choice is independent of the images that it is reported on, so the mean gain is unbiased. But the folds
are not independent of each other: a β that is lucky on one fold is chosen on the others. McNemar's test assumes
independent images, and claims a gain too often where there is none: in 4.9 % of the tables of ``ci/simulate.py``,
against 2.8 % for a β fixed beforehand. So the whole procedure, choice included, is repeated on tables without a gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from harness.analysis.selection import Scored, better
from harness.analysis.statistics import Paired

REPEATS = 1999
"""Tables without a gain on which the procedure is repeated."""
CHUNK = 100
"""Repeats at a time: their signs take CHUNK × n × 4 bytes."""
TOLERANCE = 1e-4
"""Tolerance, in images, for rounding in float32 sums of graded scores."""

Sets = Sequence[tuple[np.ndarray, np.ndarray]]
"""Positions of the images that β is chosen on and of those it is reported on, for each fold."""


def of_procedure(grid: Sequence[Scored], sets: Sets, seed: int) -> Paired:
    """Compare the choice of β by cross-validation with the baseline, paired by image.

    The p-value is that of a two-sided sign-flip test: without an effect, an image is gained as often as lost, so all
    its differences from the baseline, over all β at once, could as well have the opposite sign. The interval extends to
    either side as far as 95 % of the flipped tables reach, so it excludes 0 exactly where p is below 5 %.

    Args:
        grid: scores of every steering on the same images, the baseline among them.
        sets: images to choose and to report on, from `harness.analysis.selection.selection_sets`.
        seed: seed of the random signs.
    """
    (baseline,) = (scored for scored in grid if scored.steering.is_baseline)
    fold_grids = [_in_order_of_ties(grid, chosen_on) for chosen_on, _ in sets]
    gains = [np.stack([scored.robust for scored in ordered]) - baseline.robust for ordered in fold_grids]
    gains = [gain.astype(np.float32) for gain in gains]
    n = len(baseline.robust)
    observed = _per_image(gains, sets)
    rng = np.random.default_rng(seed)
    flipped = np.concatenate([_totals(gains, sets, signs) for signs in _signs(rng, n)])
    total = float(observed.sum())
    reach = np.sort(np.append(np.abs(flipped), abs(total)))  # the observed table is one of the possible ones
    p_value = float((reach >= abs(total) - TOLERANCE).mean())
    width = float(reach[math.ceil(0.95 * len(reach)) - 1])
    most = float(max(1.0, *(np.abs(gain).max() for gain in gains)))  # a difference of accuracies is at most one
    low, high = max((total - width) / n, -most), min((total + width) / n, most)
    return Paired(total / n, low, high, int((observed > 0).sum()), int((observed < 0).sum()), p_value)


def _in_order_of_ties(grid: Sequence[Scored], positions: np.ndarray) -> list[Scored]:
    """Return the grid in the order by which ties in robust accuracy are broken, so that the first maximum wins."""
    tied = [Scored(scored.steering, scored.clean[positions], np.zeros(1)) for scored in grid]
    return [scored for _, scored in sorted(zip(tied, grid, strict=True), key=lambda pair: better(pair[0]))]


def _winners(gain: np.ndarray, factors: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the index of the steering that wins on some images, for each table, [repeats].

    Args:
        gain: each image's difference from the baseline, [steerings, n].
        factors: sign of each image's differences in each table, [repeats, n].
        positions: images to choose on.
    """
    return np.asarray((factors[:, positions] @ gain[:, positions].T).round(3).argmax(axis=1))


def _totals(gains: Sequence[np.ndarray], sets: Sets, factors: np.ndarray) -> np.ndarray:
    """Return the total gain of the procedure, choice included, on each table, [repeats].

    Args:
        gains: each image's difference from the baseline, [steerings, n], for each fold.
        sets: images to choose and to report on, for each fold.
        factors: sign of each image's differences in each table, [repeats, n].
    """
    total = np.zeros(len(factors))
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        winners = _winners(gain, factors, chosen_on)
        reported = factors[:, reported_on] @ gain[:, reported_on].T
        total += reported[np.arange(len(factors)), winners]
    return total


def _per_image(gains: Sequence[np.ndarray], sets: Sets) -> np.ndarray:
    """Return the gain of the procedure on each image of the observed table, [n]."""
    n = gains[0].shape[1]
    observed = np.zeros(n)
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        (winner,) = _winners(gain, np.ones((1, n), np.float32), chosen_on)
        observed[reported_on] = gain[winner, reported_on]
    return observed


def _signs(rng: np.random.Generator, n: int) -> Iterator[np.ndarray]:
    """Yield random signs for `REPEATS` tables, in chunks, [repeats, n]."""
    for start in range(0, REPEATS, CHUNK):
        yield rng.choice(np.array([-1, 1], np.float32), (min(CHUNK, REPEATS - start), n))
