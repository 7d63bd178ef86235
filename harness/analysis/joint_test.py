"""Did anything change between two runs? Many paired differences of the same images, tested together. Pure."""

from __future__ import annotations

from itertools import product

import numpy as np

from harness.analysis.statistics import REPEATS, TIE, random_signs, standardised


def joint_p_values(differences: np.ndarray, repeats: int = REPEATS) -> np.ndarray:
    """Return the two-sided p-value of each mean difference, adjusted for all of them, [tests] (Westfall & Young 1993).

    Of two runs that differ by chance alone, either could have been the first. So an image's differences, in all tests
    at once, could as well have the opposite sign. A test's p is the share of such tables in which the largest
    standardised difference of any test is as large as its own. Tests that agree with each other, or in which so few
    images differ that they can never stand out, cost the others nothing, as they would by Bonferroni or Holm.

    Args:
        differences: difference of each image, [tests, n].
        repeats: number of tables that are drawn; where there are no more in all, each counts once.
    """
    changed = differences[:, differences.any(axis=0)].astype(np.float64)
    n, squares = changed.shape[1], (changed**2).sum(axis=1)
    own = np.abs(standardised(changed.sum(axis=1), squares))
    rng, every = np.random.default_rng(0), 2.0**n <= repeats
    chunks = [np.array(list(product((-1.0, 1.0), repeat=n)))] if every else random_signs(rng, repeats, n)
    largest = np.concatenate([np.abs(standardised(signs @ changed.T, squares)).max(axis=1) for signs in chunks])
    if not every:
        largest = np.append(largest, own.max())  # the observed table is one of the possible ones
    return np.asarray((largest[:, None] >= own - TIE).mean(axis=0))
