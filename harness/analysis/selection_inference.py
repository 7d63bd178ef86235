"""Inference for a cross-validated choice of β: a test of the whole procedure, and its interval. Pure.

On each fold the choice is independent of the images that it is reported on, so the mean gain is unbiased. But the folds
are not independent of each other: a β that is lucky on one fold is chosen on the others. McNemar's test assumes
independent images, and claims a gain too often where there is none (``ci/simulate.py``). So the whole procedure, choice
included, is repeated on tables without a gain. Luck makes large gains but no large losses, since the baseline can be
chosen too, so the two tails have critical values of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.analysis.selection import Scored, better
from harness.analysis.statistics import Paired, paired, random_signs, standardised

REPEATS = 1999
"""Tables without a gain on which the procedure is repeated."""

Sets = Sequence[tuple[np.ndarray, np.ndarray]]
"""Positions of the images that β is chosen on and of those it is reported on, for each fold."""


def of_procedure(grid: Sequence[Scored], sets: Sets, seed: int, repeats: int = REPEATS) -> Paired:
    """Compare the choice of β by cross-validation with the baseline, paired by image.

    Without an effect, an image is gained as often as lost, so all its differences from the baseline, over all β at
    once, could as well have the opposite sign. The test is at least as strict as McNemar's and as the standardised
    gains of the procedure on such tables ask for, gains and losses at 2.5 % each; the interval has the same critical
    values. Where no image changes, perhaps since those that speak for a β are all in the fold that did without them,
    its upper end is at least that of the β that wins on all images.

    Args:
        grid: scores of every steering on the same images, the baseline among them.
        sets: images to choose and to report on, from `harness.analysis.selection.selection_sets`.
        seed: seed of the random signs.
        repeats: number of tables without a gain.
    """
    (baseline,) = (scored for scored in grid if scored.steering.is_baseline)
    fold_grids = [_in_order_of_ties(grid, chosen_on) for chosen_on, _ in sets]
    gains = [np.stack([scored.robust for scored in ordered]) - baseline.robust for ordered in fold_grids]
    gains = [gain.astype(np.float32) for gain in gains]
    signs = random_signs(np.random.default_rng(seed), repeats, len(baseline.robust))
    null = np.concatenate([_standardised(gains, sets, chunk) for chunk in signs])
    found = paired(baseline.robust, baseline.robust + _per_image(gains, sets), null)
    if found.gained + found.lost:
        return found
    best = paired(baseline.robust, min(grid, key=better).robust)  # not seen on the fold that has all its gains
    return replace(found, high=max(found.high, best.high))


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


def _standardised(gains: Sequence[np.ndarray], sets: Sets, factors: np.ndarray) -> np.ndarray:
    """Return the standardised gain of the procedure, choice included, on each table, [repeats].

    Args:
        gains: each image's difference from the baseline, [steerings, n], for each fold.
        sets: images to choose and to report on, for each fold.
        factors: sign of each image's differences in each table, [repeats, n].
    """
    total, squares = np.zeros(len(factors)), np.zeros(len(factors))
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        winners, reported = _winners(gain, factors, chosen_on), gain[:, reported_on]
        total += (factors[:, reported_on] @ reported.T)[np.arange(len(factors)), winners]
        squares += (reported**2).sum(axis=1)[winners]
    return standardised(total, squares)


def _per_image(gains: Sequence[np.ndarray], sets: Sets) -> np.ndarray:
    """Return the gain of the procedure on each image of the observed table, [n]."""
    n = gains[0].shape[1]
    observed = np.zeros(n)
    for gain, (chosen_on, reported_on) in zip(gains, sets, strict=True):
        (winner,) = _winners(gain, np.ones((1, n), np.float32), chosen_on)
        observed[reported_on] = gain[winner, reported_on]
    return observed
